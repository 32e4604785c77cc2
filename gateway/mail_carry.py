"""The half of mailbox.db that the ingest process uses: what a device took, what goes next.

`seen` writes down what a hello means (postman.judge decides), `bind` gives waiting items
their numbers; both are on disk when they return. `open_items` is what is under way.
"""

from typing import NamedTuple

from gateway.mail_judge import Judgements
from gateway.postman import ADOPT, ASK, DOUBT, MORE, PROBE_NUMBER, SAME, Standing, judge

HEAD_KEY = b"head"
HISTORY = 512  # items taken, per device, that are remembered

HELLO_EVERY_MS = 60_000  # the time of a hello that brings nothing new is written this often

WAITS = "taken_ms IS NULL AND number IS NULL"


class Item(NamedTuple):
    """What goes into one box."""

    id: int
    type: int
    body: bytes
    number: int


class Carried(Judgements):
    """See the module; gateway.mailbox.Mailbox adds what senders use.

    delivered: items found to be taken, by this process."""

    delivered = 0

    def standing(self, agent: bytes) -> Standing:
        rows = self.rows("SELECT taken, top, born FROM boxes WHERE agent = ?", (agent,))
        return Standing(*rows[0]) if rows else Standing()

    def seen(
        self, agent: bytes, taken: int, head: "int | None", counter: int, asked: int, now_ms: int
    ) -> str:
        """A hello said this. The verdict of postman.judge, and everything that follows from it
        is written down."""
        with self.batch():
            before = self.standing(agent)
            verdict, after = judge(before, taken, counter, asked)
            if verdict in (SAME, ASK, DOUBT) and self._as_before(agent, head, now_ms):
                return verdict  # most hellos: nothing to sync to disk
            self.run("INSERT OR IGNORE INTO boxes (agent) VALUES (?)", (agent,))
            if verdict == ADOPT and after.top == taken:
                self._go_back(agent, taken, now_ms)
            if verdict in (MORE, ADOPT):
                self._deliver(agent, taken, now_ms)
                self.run(
                    "UPDATE boxes SET taken = ?, top = ?, born = ? WHERE agent = ?",
                    (*after, agent),
                )
                if (before.taken or 0) > taken:
                    self._count(agent, "went back", 1)
                    self.run("UPDATE boxes SET taken_head = NULL WHERE agent = ?", (agent,))
            self.run(
                "UPDATE boxes SET hello_ms = ?,"
                " head_ms = CASE WHEN head IS ? AND head_ms > 0 THEN head_ms ELSE ? END,"
                " head = ? WHERE agent = ?",
                (now_ms, head, now_ms, head, agent),
            )
        return verdict

    def _as_before(self, agent: bytes, head: "int | None", now_ms: int) -> bool:
        rows = self.rows("SELECT head, hello_ms FROM boxes WHERE agent = ?", (agent,))
        return bool(rows) and rows[0][0] == head and abs(now_ms - rows[0][1]) < HELLO_EVERY_MS

    def _deliver(self, agent: bytes, taken: int, now_ms: int) -> None:
        done = self.run(
            "UPDATE items SET taken_ms = ? WHERE agent = ? AND taken_ms IS NULL AND number <= ?",
            (now_ms, agent, taken),
        )
        if not done.rowcount:
            return
        self.delivered += done.rowcount
        self._count(agent, "taken", done.rowcount)
        self.run(
            "UPDATE boxes SET taken_head = put_head WHERE agent = ? AND put_rows = (SELECT count(*)"
            " FROM items i WHERE i.agent = boxes.agent AND i.key = ? AND i.head = boxes.put_head"
            " AND i.taken_ms IS NOT NULL)",
            (agent, HEAD_KEY),
        )
        self.run(
            "DELETE FROM items WHERE agent = ? AND taken_ms IS NOT NULL AND id NOT IN (SELECT id"
            " FROM items WHERE agent = ? AND taken_ms IS NOT NULL"
            " ORDER BY taken_ms DESC, number DESC LIMIT ?)",
            (agent, agent, HISTORY),
        )

    def _go_back(self, agent: bytes, taken: int, now_ms: int) -> None:
        """The device stands at `taken`, and that is where numbers go on: what had one waits
        again, what was taken with a higher one, too."""
        self.run(
            "DELETE FROM items WHERE agent = ? AND taken_ms IS NOT NULL AND number > ?"
            " AND ((expires_ms > 0 AND expires_ms <= ?) OR (key <> x'' AND EXISTS (SELECT 1 FROM"
            " items o WHERE o.agent = items.agent AND o.key = items.key AND o.lot > items.lot)))",
            (agent, taken, now_ms),
        )
        again = self.run(
            "UPDATE items SET number = NULL, taken_ms = NULL WHERE agent = ?"
            " AND taken_ms IS NOT NULL AND number > ?",
            (agent, taken),
        )
        self._count(agent, "again", again.rowcount)
        self.run("UPDATE items SET number = NULL WHERE agent = ? AND taken_ms IS NULL", (agent,))

    def open_items(self, agent: bytes) -> list[Item]:
        """Under way: bound to a number, not known to be taken; in order of numbers."""
        rows = self.rows(
            "SELECT id, type, body, number FROM items WHERE agent = ? AND taken_ms IS NULL"
            " AND number IS NOT NULL ORDER BY number",
            (agent,),
        )
        return [Item(*row) for row in rows]

    def with_mail(self) -> list[bytes]:
        """Devices for which something waits or is under way."""
        rows = self.rows("SELECT DISTINCT agent FROM items WHERE taken_ms IS NULL")
        return [agent for (agent,) in rows]

    def any_waiting(self, agent: bytes) -> bool:
        rows = self.rows(f"SELECT 1 FROM items WHERE agent = ? AND {WAITS} LIMIT 1", (agent,))  # noqa: S608
        return bool(rows)

    def bind(self, agent: bytes, room: int, now_ms: int) -> list[Item]:
        """Give up to `room` waiting items the next numbers, the most urgent first."""
        with self.batch():
            self._expire(agent, now_ms)
            standing = self.standing(agent)
            rows = self.rows(
                f"SELECT id, type, body FROM items WHERE agent = ? AND {WAITS}"  # noqa: S608
                " ORDER BY priority, id LIMIT ?",
                (agent, min(room, PROBE_NUMBER - 2 - standing.top)),
            )
            found = []
            top = standing.top
            for id_, type_, body in rows:
                top += 1
                self.run("UPDATE items SET number = ? WHERE id = ?", (top, id_))
                found.append(Item(id_, type_, body, top))
            if found:
                self.run("UPDATE boxes SET top = ? WHERE agent = ?", (top, agent))
        return found

    def _expire(self, agent: bytes, now_ms: int) -> None:
        gone = self.run(
            f"DELETE FROM items WHERE agent = ? AND {WAITS} AND expires_ms > 0"  # noqa: S608
            " AND expires_ms <= ?",
            (agent, now_ms),
        )
        self._count(agent, "expired", gone.rowcount)

    def encrypts(self, agent: bytes) -> bool:
        rows = self.rows("SELECT encrypts FROM boxes WHERE agent = ?", (agent,))
        return bool(rows and rows[0][0])

    def set_encrypts(self, agent: bytes, encrypts: bool) -> None:
        """The device seals what it sends as Encrypt0; so is what is sent to it."""
        with self.batch():
            self.run("INSERT OR IGNORE INTO boxes (agent) VALUES (?)", (agent,))
            self.run("UPDATE boxes SET encrypts = ? WHERE agent = ?", (int(encrypts), agent))

    def forget(self, agent: bytes) -> None:
        """A device that is believed no more."""
        with self.batch():
            for table in ("items", "boxes", "counts"):
                self.run(f"DELETE FROM {table} WHERE agent = ?", (agent,))  # noqa: S608

    def _count(self, agent: bytes, what: str, count: int) -> None:
        if count > 0:
            self.run(
                "INSERT INTO counts VALUES (?,?,?) ON CONFLICT DO UPDATE SET"
                " count = count + excluded.count",
                (agent, what, count),
            )
