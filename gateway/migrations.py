"""The schema, as named steps. Each runs once, in one transaction, in this order.

A step is never edited after a release: what it made exists in somebody's database. The
tables, and why they look like this:

outcomes    one row a frame, in order of arrival: what people and the learner filter by.
            All of it can be made again from the frame. domain: row of `domains`.
blocks      the frames as they came, those of one commit together (blocks.pack_frames):
            the row of block `first` holds outcomes first..first+count-1. The view
            `frames` (id, frame) opens them.
runs        where an identity is: seq first..first+count-1 of a stream are the rows from
            first_id on. Written per several thousand rows, not per row (store.merge).
streams     one per (device, journal): what is held, refused, gone, lost, the floor for
            ever, and the newest hello. Ranges as text, "1-40 42".
tombstones  frame hashes of outcomes that retention deleted and the device may resend.
boots       bounds of each boot's time base; `base` and `uncertainty_ms` are repaired
            again and again, what devices sent is not touched.
feedback    the newest judgement of an outcome. outcome: row of the record that brought it,
            0 when people said so.
judgements  what people said, in order of arrival, the newest 100,000: for those who follow
"""

import sqlite3

MIGRATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "0001-first",
        (
            "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
            """CREATE TABLE devices (
                id INTEGER PRIMARY KEY,
                agent BLOB NOT NULL UNIQUE CHECK (length(agent) = 8),
                name TEXT NOT NULL,
                gateway BLOB NOT NULL,
                generation INTEGER NOT NULL,
                enrolled_ms INTEGER NOT NULL,
                revoked_ms INTEGER)""",
            """CREATE TABLE generations (
                device INTEGER NOT NULL REFERENCES devices(id),
                generation INTEGER NOT NULL,
                created_ms INTEGER NOT NULL,
                retired_ms INTEGER,
                PRIMARY KEY (device, generation)) WITHOUT ROWID""",
            """CREATE TABLE streams (
                id INTEGER PRIMARY KEY,
                device INTEGER NOT NULL REFERENCES devices(id),
                journal BLOB NOT NULL CHECK (length(journal) = 4),
                start INTEGER NOT NULL,
                floor INTEGER NOT NULL,
                next_seq INTEGER NOT NULL,
                held TEXT NOT NULL DEFAULT '',
                refused TEXT NOT NULL DEFAULT '',
                gone TEXT NOT NULL DEFAULT '',
                lost TEXT NOT NULL DEFAULT '',
                forks INTEGER NOT NULL DEFAULT 0,
                conflicts INTEGER NOT NULL DEFAULT 0,
                duplicates INTEGER NOT NULL DEFAULT 0,
                last_ms INTEGER NOT NULL DEFAULT 0,
                hello_ms INTEGER NOT NULL DEFAULT 0,
                nonces BLOB NOT NULL DEFAULT x'',
                hello TEXT NOT NULL DEFAULT '{}',
                UNIQUE (device, journal))""",
            """CREATE TABLE boots (
                stream INTEGER NOT NULL REFERENCES streams(id),
                boot INTEGER NOT NULL,
                low INTEGER, high INTEGER,
                last_up INTEGER NOT NULL,
                clocked INTEGER NOT NULL,
                floor INTEGER, ceiling INTEGER,
                base INTEGER NOT NULL,
                uncertainty_ms INTEGER NOT NULL,
                source TEXT NOT NULL,
                PRIMARY KEY (stream, boot)) WITHOUT ROWID""",
            """CREATE TABLE outcomes (
                id INTEGER PRIMARY KEY,
                stream INTEGER NOT NULL,
                seq INTEGER NOT NULL,
                boot INTEGER NOT NULL,
                uptime_ms INTEGER NOT NULL,
                utc_s INTEGER,
                arrival_ms INTEGER NOT NULL,
                label INTEGER NOT NULL,
                confidence INTEGER,
                result INTEGER,
                domain INTEGER)""",
            "CREATE TABLE domains (id INTEGER PRIMARY KEY, domain BLOB NOT NULL UNIQUE)",
            """CREATE TABLE blocks (
                first INTEGER PRIMARY KEY,
                count INTEGER NOT NULL,
                frames BLOB NOT NULL)""",
            """CREATE TABLE runs (
                key INTEGER PRIMARY KEY,
                count INTEGER NOT NULL,
                first_id INTEGER NOT NULL)""",
            "CREATE TABLE tombstones (key INTEGER PRIMARY KEY, hash BLOB NOT NULL)",
            """CREATE TABLE feedback (
                about BLOB PRIMARY KEY,
                outcome INTEGER NOT NULL,
                result INTEGER,
                label INTEGER) WITHOUT ROWID""",
            """CREATE TABLE conflicts (
                id INTEGER PRIMARY KEY,
                stream INTEGER NOT NULL,
                seq INTEGER NOT NULL,
                arrival_ms INTEGER NOT NULL,
                held_hash BLOB NOT NULL,
                frame BLOB NOT NULL)""",
            """CREATE TABLE rejected (
                reason TEXT PRIMARY KEY,
                count INTEGER NOT NULL,
                last_ms INTEGER NOT NULL) WITHOUT ROWID""",
            """CREATE TABLE samples (
                id INTEGER PRIMARY KEY,
                reason TEXT NOT NULL,
                arrival_ms INTEGER NOT NULL,
                topic TEXT NOT NULL,
                detail TEXT NOT NULL,
                frame BLOB NOT NULL)""",
            # Needs the function `unpack_frame` (blocks.teach); a join on `id` is cheap.
            """CREATE VIEW frames AS
                SELECT o.id AS id, unpack_frame(b.frames, o.id - b.first) AS frame
                FROM outcomes o
                JOIN blocks b ON b.first = (SELECT max(first) FROM blocks WHERE first <= o.id)""",
            # The time of every outcome as best known today. `utc_s` is set only when the
            # device's clock was plausible.
            """CREATE VIEW timeline AS
                SELECT o.id AS id, d.agent AS agent, s.journal AS journal, o.seq AS seq,
                    o.label AS label, o.confidence AS confidence, o.result AS result,
                    o.boot AS boot, o.uptime_ms AS uptime_ms, o.utc_s AS utc_s,
                    o.arrival_ms AS arrival_ms, m.domain AS domain,
                    b.low AS low, b.high AS high, b.last_up AS last_up,
                    b.clocked AS clocked, b.floor AS floor, b.ceiling AS ceiling
                FROM outcomes o
                JOIN streams s ON s.id = o.stream
                JOIN devices d ON d.id = s.device
                LEFT JOIN domains m ON m.id = o.domain
                LEFT JOIN boots b ON b.stream = o.stream AND b.boot = o.boot""",
        ),
    ),
    (
        "0002-judgements",
        (
            """CREATE TABLE judgements (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                about BLOB NOT NULL CHECK (length(about) = 16),
                result INTEGER NOT NULL,
                label INTEGER NOT NULL,
                arrival_ms INTEGER NOT NULL)""",
        ),
    ),
)


def applied(db: sqlite3.Connection) -> list[str]:
    """Names of the steps this database has had."""
    db.execute(
        "CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied_ms INTEGER)"
        " WITHOUT ROWID"
    )
    return [name for (name,) in db.execute("SELECT name FROM migrations ORDER BY name")]


def migrate(db: sqlite3.Connection, now_ms: int) -> list[str]:
    """Run the missing steps; returns their names. `db` is in autocommit mode.

    Raises ValueError when the database has had a step this program does not know.
    """
    done = applied(db)
    unknown = sorted(set(done) - {name for name, _ in MIGRATIONS})
    if unknown:
        raise ValueError(unknown[0])
    ran = []
    for name, statements in MIGRATIONS:
        if name in done:
            continue
        db.execute("BEGIN IMMEDIATE")
        try:
            if name in applied(db):  # another process was quicker
                db.execute("ROLLBACK")
                continue
            for statement in statements:
                db.execute(statement)
            db.execute("INSERT INTO migrations VALUES (?, ?)", (name, now_ms))
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise
        ran.append(name)
    return ran
