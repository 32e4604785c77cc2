"""Schema and rows of routing.db; see routing_db.py."""

import contextlib
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path as FilePath
from typing import Any, NamedTuple

from edge_agent.errors import StoreError
from gateway.cells import Path

# Steps of the schema. One is never edited after a release: `user_version` says how many ran.
STEPS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
        """CREATE TABLE announced (
            thing BLOB NOT NULL,
            key BLOB NOT NULL,
            kind INTEGER NOT NULL,
            domain BLOB NOT NULL,
            version INTEGER NOT NULL,
            label INTEGER,
            cell INTEGER NOT NULL,
            epoch INTEGER NOT NULL,
            expires_s INTEGER NOT NULL,
            since_s INTEGER NOT NULL,
            flags INTEGER NOT NULL,
            confidence INTEGER NOT NULL,
            merged INTEGER NOT NULL,
            outcome INTEGER,
            sketch BLOB NOT NULL,
            value BLOB NOT NULL,
            PRIMARY KEY (thing, key)) WITHOUT ROWID""",
        "CREATE INDEX announced_expires ON announced (expires_s)",
        # In the order in which it is read: a cell is one stretch of pages.
        """CREATE TABLE local (
            outcome INTEGER NOT NULL,
            id BLOB NOT NULL UNIQUE,
            domain BLOB NOT NULL,
            label INTEGER NOT NULL,
            cell INTEGER NOT NULL,
            confidence INTEGER NOT NULL,
            result INTEGER,
            vector BLOB NOT NULL,
            PRIMARY KEY (domain, label, cell, outcome)) WITHOUT ROWID""",
        "CREATE UNIQUE INDEX local_outcome ON local (outcome)",
        """CREATE TABLE interests (
            id INTEGER PRIMARY KEY,
            agent BLOB NOT NULL,
            domain BLOB NOT NULL,
            label INTEGER,
            vector BLOB NOT NULL,
            confidence INTEGER NOT NULL,
            expires_s INTEGER NOT NULL)""",
        "CREATE INDEX interests_agent ON interests (agent)",
        """CREATE TABLE found (
            id INTEGER PRIMARY KEY,
            agent BLOB NOT NULL,
            outcome BLOB NOT NULL,
            gateway BLOB NOT NULL,
            domain BLOB NOT NULL,
            label INTEGER NOT NULL,
            score REAL NOT NULL,
            utc_s INTEGER NOT NULL,
            found_ms INTEGER NOT NULL,
            taken_ms INTEGER,
            voucher BLOB NOT NULL,
            UNIQUE (agent, outcome))""",
        """CREATE TABLE agents (
            agent BLOB NOT NULL,
            domain BLOB NOT NULL,
            state BLOB NOT NULL,
            PRIMARY KEY (domain, agent)) WITHOUT ROWID""",
        """CREATE TABLE audit (
            id INTEGER PRIMARY KEY,
            utc_ms INTEGER NOT NULL,
            gateway BLOB NOT NULL,
            op TEXT NOT NULL,
            count INTEGER NOT NULL,
            verdict TEXT NOT NULL,
            detail TEXT NOT NULL)""",
        """CREATE TABLE splits (
            domain BLOB NOT NULL,
            version INTEGER NOT NULL,
            label INTEGER NOT NULL,
            cell INTEGER NOT NULL,
            expires_s INTEGER NOT NULL,
            PRIMARY KEY (domain, version, label, cell)) WITHOUT ROWID""",
        """CREATE TABLE rejected (
            reason TEXT PRIMARY KEY,
            count INTEGER NOT NULL,
            last_ms INTEGER NOT NULL) WITHOUT ROWID""",
    ),
    (
        """CREATE TABLE evidence (
            id INTEGER PRIMARY KEY,
            outcome BLOB NOT NULL UNIQUE,
            gateway BLOB NOT NULL,
            agent BLOB NOT NULL,
            domain BLOB NOT NULL,
            model BLOB NOT NULL,
            label INTEGER NOT NULL,
            said INTEGER NOT NULL,
            own INTEGER NOT NULL,
            confidence INTEGER NOT NULL,
            confirmed INTEGER NOT NULL,
            head INTEGER,
            depth INTEGER NOT NULL,
            utc_s INTEGER NOT NULL,
            vector BLOB NOT NULL)""",
        "CREATE INDEX evidence_of ON evidence (domain, gateway, confirmed, label)",
        """CREATE TABLE heads (
            domain BLOB NOT NULL,
            model BLOB NOT NULL,
            version INTEGER NOT NULL,
            made_ms INTEGER NOT NULL,
            state TEXT NOT NULL,
            rows BLOB NOT NULL,
            held BLOB NOT NULL,
            report TEXT NOT NULL,
            PRIMARY KEY (domain, model, version)) WITHOUT ROWID""",
    ),
)


AUDIT = "SELECT utc_ms, gateway, op, count, verdict, detail FROM audit ORDER BY id DESC LIMIT ?"


class Announced(NamedTuple):
    """One row of `announced`. thing: outcome id or agent id. value: as announced.

    merged: near-duplicates it stands for. outcome: row in gateway.db, None for agents.
    """

    thing: bytes
    key: bytes
    kind: int
    domain: bytes
    version: int
    label: int | None
    path: Path
    epoch: int
    expires_s: int
    since_s: int
    flags: int
    confidence: int
    merged: int
    outcome: int | None
    sketch: bytes
    value: bytes


class Local(NamedTuple):
    """One's own outcome. outcome: row in gateway.db. vector: as the device made it."""

    outcome: int
    id: bytes
    domain: bytes
    label: int
    cell: int
    confidence: int
    result: int | None
    vector: bytes


class Near(NamedTuple):
    """A local outcome found. score: as similarity.rank gives it, more is nearer."""

    outcome: int
    id: bytes
    label: int
    confidence: int
    result: int | None
    score: float


class Interest(NamedTuple):
    id: int
    agent: bytes
    domain: bytes
    label: int | None
    vector: bytes
    confidence: int
    expires_s: int


class Found(NamedTuple):
    """An outcome of another gateway for one device. voucher: Sign1 around its payload."""

    id: int
    agent: bytes
    outcome: bytes
    gateway: bytes
    domain: bytes
    label: int
    score: float
    utc_s: int
    found_ms: int
    taken_ms: int | None
    voucher: bytes


def audit_rows(rows: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    names = ("utc_ms", "gateway", "op", "count", "verdict", "detail")
    return [dict(zip(names, row, strict=True)) for row in rows]


def read_audit(path: FilePath, limit: int) -> list[dict[str, Any]]:
    """The newest audit rows, from beside the process that writes them; nothing is changed."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        ) as db:
            return audit_rows(db.execute(AUDIT, (limit,)))
    except sqlite3.Error as error:
        raise StoreError(str(error), str(path), "Start routing once: it sets a bad file aside")
