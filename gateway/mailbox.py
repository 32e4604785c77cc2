"""What waits for devices: the half of mailbox.db that senders use.

Senders (the learner, in the routing process) use

    put, put_head       queue an item, or all rows of a head
    waiting, head       how much waits; which head is queued, taken, in force
    boxes, taken        which devices take mail; what they took last

and the ingest process, which has the keys and the connection, what is in mail_carry.py. Each
public method is one transaction unless the caller has one open.

**Coalescing.** Of items with the same key only the newest waits; one that is the same as the
newest, byte for byte, is not queued again. An item that has a number stays as it is: the
device may have taken it already. All rows of a head share one key, so a head or a clear that
is put later takes the place of the rows that still wait. A half-sent head does no harm: the
device drops it when a row of another version comes.

**Quota**, per device: items and bytes that wait. Of too many, the least urgent give way and
of those the oldest; an item less urgent than all that waits is refused. Rows of one head go
together.

**A device that goes back** (formatted, or restored from an image) has lost what it took after
that point. What has not expired and was not followed by a newer item with the same key waits
again, in the order in which it was put.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.mail_carry import HEAD_KEY, WAITS, Carried, Item

ROW, NEIGHBOUR, CLEAR = 1, 2, 3
BODY_MAX = 432
ROWS_MAX = 255
KEY_MAX = 64
ITEMS, BYTES = 128, 32_768

__all__ = ["CLEAR", "HEAD_KEY", "NEIGHBOUR", "ROW", "Head", "Item", "Mailbox", "Put"]

_Entry = tuple[int, bytes, "int | None"]  # type, body, head version


class Put(NamedTuple):
    """id: of the (first) item, None when refused.  reason: "" queued, "same" (it waits, is under
    way, or was taken already), or why it was refused."""

    id: int | None
    reason: str = ""


class Waiting(NamedTuple):
    """items, size: not yet taken, in number and bytes.  under_way: of them with a number."""

    items: int
    size: int
    under_way: int


class Head(NamedTuple):
    """Versions. queued: put and not wholly taken.  sent: the newest wholly taken.  in_force:
    what the device said last, None for its model's own.  since_ms: of that."""

    queued: int | None
    sent: int | None
    in_force: int | None
    since_ms: int


class Box(NamedTuple):
    """A device with mail or that takes mail. taken: None until it was found out."""

    agent: bytes
    taken: int | None
    hello_ms: int
    in_force: int | None
    encrypts: bool


class Taken(NamedTuple):
    id: int
    type: int
    key: bytes
    head: int | None
    number: int
    put_ms: int
    taken_ms: int
    size: int


class Refused(Exception):
    """Undoes a put."""


def _wall_ms() -> int:
    return int(time.time() * 1000)


class Mailbox(Carried):
    """items, size: quota of each device."""

    def __init__(
        self,
        path: "Path | str",
        busy_ms: int = 1000,
        items: int = ITEMS,
        size: int = BYTES,
        now_ms: Callable[[], int] = _wall_ms,
    ) -> None:
        self._items = items
        self._size = size
        self._now_ms = now_ms
        super().__init__(path, busy_ms)

    # -- senders --------------------------------------------------------------------------

    def put(
        self, agent: bytes, type: int, body: bytes, priority: int, expires_ms: int, key: bytes = b""
    ) -> Put:
        """Queue an item. priority: 0 urgent, 1 normal, 2 bulk.  expires_ms: UTC, 0 = never.
        Refused as "bad-field", "too-long", "expired" or "quota"."""
        return self._put(agent, [(type, body, None)], priority, expires_ms, key)

    def put_head(
        self,
        agent: bytes,
        version: int,
        rows: Sequence[bytes],
        expires_ms: int,
        priority: int = 1,
    ) -> Put:
        """Queue all rows of a head or none; rows of another one that wait are dropped."""
        if not 0 <= version <= 0xFFFF or not 1 <= len(rows) <= ROWS_MAX:
            return Put(None, "bad-field")
        entries: list[_Entry] = [(ROW, bytes(row), version) for row in rows]
        return self._put(agent, entries, priority, expires_ms, HEAD_KEY)

    def _put(
        self,
        agent: bytes,
        entries: "list[_Entry]",
        priority: int,
        expires_ms: int,
        key: bytes,
    ) -> Put:
        now = self._now_ms()
        reason = _fault(agent, entries, priority, key)
        if not reason and 0 < expires_ms <= now:
            reason = "expired"
        if not reason:
            try:
                with self.batch():
                    return self._queue(agent, entries, priority, expires_ms, key, now)
            except Refused as refused:
                reason = str(refused)
        if len(agent) == 8:
            with self.batch():
                self._count(agent, "refused " + reason, len(entries))
        return Put(None, reason)

    def _queue(
        self,
        agent: bytes,
        entries: "list[_Entry]",
        priority: int,
        expires_ms: int,
        key: bytes,
        now: int,
    ) -> Put:
        self.run("INSERT OR IGNORE INTO boxes (agent) VALUES (?)", (agent,))
        self._expire(agent, now)
        if key:
            same = self._same(agent, key, entries, expires_ms)
            if same is not None:
                return Put(same, "same")
            dropped = self.run(
                f"DELETE FROM items WHERE agent = ? AND key = ? AND {WAITS}",  # noqa: S608
                (agent, key),
            )
            self._count(agent, "coalesced", dropped.rowcount)
        self._make_room(agent, len(entries), sum(len(e[1]) for e in entries), priority)
        lot = 0
        for type_, body, version in entries:
            cursor = self.run(
                "INSERT INTO items (agent, lot, type, body, priority, key, head, put_ms,"
                " expires_ms) VALUES (?,?,?,?,?,?,?,?,?)",
                (agent, lot, type_, body, priority, key, version, now, expires_ms),
            )
            if not lot:
                lot = int(cursor.lastrowid or 0)
                self.run("UPDATE items SET lot = id WHERE id = ?", (lot,))
        if key == HEAD_KEY:
            self.run(
                "UPDATE boxes SET put_head = ?, put_rows = ? WHERE agent = ?",
                (entries[0][2], len(entries), agent),
            )
        self._count(agent, "put", len(entries))
        return Put(lot)

    def _same(
        self,
        agent: bytes,
        key: bytes,
        entries: "list[_Entry]",
        expires_ms: int,
    ) -> int | None:
        """The newest lot with this key, when it is these entries; it then lives as long."""
        rows = self.rows(
            "SELECT lot, type, body, head FROM items WHERE agent = ? AND key = ? AND lot ="
            " (SELECT max(lot) FROM items WHERE agent = ? AND key = ?) ORDER BY id",
            (agent, key, agent, key),
        )
        if [(type_, bytes(body), head) for _, type_, body, head in rows] != entries:
            return None
        lot = int(rows[0][0])
        self.run(
            "UPDATE items SET expires_ms = ? WHERE lot = ? AND agent = ?", (expires_ms, lot, agent)
        )
        return lot

    def _make_room(self, agent: bytes, count: int, size: int, priority: int) -> None:
        """Let the least urgent give way, of those the oldest. Raises Refused."""
        if count > self._items or size > self._size:
            raise Refused("quota")
        while True:
            items, used = self.run(
                f"SELECT count(*), coalesce(sum(length(body)), 0) FROM items"  # noqa: S608
                f" WHERE agent = ? AND {WAITS}",
                (agent,),
            ).fetchone()
            if items + count <= self._items and used + size <= self._size:
                return
            lot, theirs = self.run(
                f"SELECT lot, priority FROM items WHERE agent = ? AND {WAITS}"  # noqa: S608
                " ORDER BY priority DESC, id LIMIT 1",
                (agent,),
            ).fetchone()
            if theirs < priority:
                raise Refused("quota")
            self._count(agent, "gave way", self._drop_lot(agent, lot))

    def _drop_lot(self, agent: bytes, lot: int) -> int:
        return self.run(
            f"DELETE FROM items WHERE agent = ? AND lot = ? AND {WAITS}",  # noqa: S608
            (agent, lot),
        ).rowcount

    # -- what senders want to know ----------------------------------------------------------

    def waiting(self, agent: bytes) -> Waiting:
        row = self.rows(
            "SELECT count(*), coalesce(sum(length(body)), 0), count(number) FROM items"
            " WHERE agent = ? AND taken_ms IS NULL"
            " AND (expires_ms = 0 OR expires_ms > ? OR number IS NOT NULL)",
            (agent, self._now_ms()),
        )[0]
        return Waiting(*row)

    def head(self, agent: bytes) -> Head:
        rows = self.rows(
            "SELECT put_head, taken_head, head, head_ms FROM boxes WHERE agent = ?", (agent,)
        )
        if not rows:
            return Head(None, None, None, 0)
        queued, sent, in_force, since_ms = rows[0]
        if queued is not None:
            ((left,),) = self.rows(
                "SELECT count(*) FROM items WHERE agent = ? AND key = ? AND head = ?"
                " AND taken_ms IS NULL AND (expires_ms = 0 OR expires_ms > ?"
                " OR number IS NOT NULL)",
                (agent, HEAD_KEY, queued, self._now_ms()),
            )
            queued = queued if left else None
        return Head(queued, sent, in_force, since_ms)

    def boxes(self) -> list[Box]:
        rows = self.rows("SELECT agent, taken, hello_ms, head, encrypts FROM boxes ORDER BY agent")
        return [Box(a, taken, ms, head, bool(enc)) for a, taken, ms, head, enc in rows]

    def taken(self, agent: bytes, limit: int = 100) -> list[Taken]:
        """What the device took last, newest first."""
        rows = self.rows(
            "SELECT id, type, key, head, number, put_ms, taken_ms, length(body) FROM items"
            " WHERE agent = ? AND taken_ms IS NOT NULL ORDER BY taken_ms DESC, number DESC LIMIT ?",
            (agent, limit),
        )
        return [Taken(*row) for row in rows]

    def is_taken(self, id_: int) -> bool | None:
        """Whether an item was taken; None when it is not there (any more)."""
        rows = self.rows("SELECT taken_ms FROM items WHERE id = ?", (id_,))
        return rows[0][0] is not None if rows else None

    def counts(self, agent: "bytes | None" = None) -> dict[str, int]:
        """Of one device, or of all."""
        return dict(
            self.rows(
                "SELECT what, sum(count) FROM counts WHERE agent = ? OR ? IS NULL GROUP BY what",
                (agent, agent),
            )
        )


def _fault(agent: bytes, entries: "Sequence[_Entry]", priority: int, key: bytes) -> str:
    if len(agent) != 8 or not 0 <= priority <= 2 or len(key) > KEY_MAX:
        return "bad-field"
    for type_, body, _ in entries:
        if not 0 < type_ <= 255:
            return "bad-field"
        if len(body) > BODY_MAX:
            return "too-long"
    return ""
