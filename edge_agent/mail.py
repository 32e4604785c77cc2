"""What a mailbox brings to a device: rows of a head, neighbours. No I/O.

Theory of operation. A box with a number is taken when the number is the next one; what it
says counts at once, and content, number and down counter are written together, so that a power
cut leaves an older state as a whole. Only what was written is reported, by a hello.

    state   event                         next     what is asked for
    clean   box taken                     dirty
    dirty   8 boxes, SAVE_MS, or stop     saving   Keep
    saving  box taken                     saving   (dirty again when it is done)
    saving  done                          clean    a hello
    saving  failed                        dirty    tried again after a growing pause

A box that is not the next one is answered by a hello too, at most one every ASK_MS: the
gateway does not know where this device stands.

Rows are kept until a head is whole; then it replaces the old one. `decide` puts it in the
place of the model's own last layer, then asks the neighbours (synthesis.py).

A clear travels in a box of type 3: `encode_clear`, `decode_clear`; SPEC.md, section 6.
"""

from collections import namedtuple

from edge_agent.cbor import decode, encode
from edge_agent.effects import Event, Keep
from edge_agent.errors import CborError, FrameError
from edge_agent.head import Head, decode_row
from edge_agent.synthesis import Neighbours, decode_neighbour, vote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edge_agent.effects import Ids
    from edge_agent.frame import Box
    from edge_agent.head import Row

ROW = 1
NEIGHBOUR = 2
CLEAR = 3

CLEAR_HEAD = 1
CLEAR_NEIGHBOURS = 2

STATE_MAX = 16384  # bytes
SAVE_MS = 500
SAVE_BOXES = 8
ASK_MS = 1000
RETRY_MS = 2000
RETRY_CAP_MS = 60000

# label, confidence, parents, depth: of an outcome.  head: version of the head that took part,
# None when none did.
Advice = namedtuple("Advice", ("label", "confidence", "parents", "depth", "head"))


class Mail:
    """The device's end of its mailbox.

    settings: Config.peers.  data: of the last Keep that was performed, None when there is none.
    labels: of the domain.  age_s: uptime of the boots before.  domain_id: what was kept for
    another domain is dropped.

    Attributes to read: taken (the highest number, perhaps not yet durable), counter (the down
    counter that was written with it), head, neighbours, counters, ask (a hello is due now).
    """

    def __init__(
        self,
        settings: "dict[str, int]",
        ids: "Ids",
        data: "bytes | None",
        labels: int,
        age_s: int = 0,
        domain_id: bytes = b"",
    ) -> None:
        self._set = settings
        self._domain_id = domain_id
        self._ids = ids
        self._labels = labels
        self._age_s = age_s
        self.taken = 0
        self.counter = 0
        self.head: Head | None = None
        self._rows: list[Row] = []  # of a head that is not yet whole
        self.neighbours = self._table(b"")
        self.counters: dict[str, int] = {}
        self.ask = False
        self._read(data)
        self._durable = (self.taken, self.head)
        self._fresh = 0  # boxes taken since the last save began
        self._save_at = 0
        self._fails = 0
        self._saving: tuple[int, Any, int] | None = None  # effect id, what is written, boxes
        self._asked_ms = -ASK_MS
        self._ask_at = -1

    # -- boxes -------------------------------------------------------------------------

    def on_box(self, box: "Box", now: int) -> "list[Any]":
        """A genuine box with a number, and with a counter not seen before."""
        out: list[Any] = []
        if box.number != self.taken + 1:
            self._count("duplicates" if box.number <= self.taken else "gaps")
            if self._ask_at < 0:
                self._ask_at = max(now, self._asked_ms + ASK_MS)
            return out + self.on_tick(now)
        self.taken = box.number
        self.counter = box.counter
        self._count("taken")
        why = self._take(box.type, box.body, now, out)
        if why:
            self._count(why)
        self._fresh += 1
        if self._fresh == 1:
            self._save_at = max(self._save_at, now + SAVE_MS)
        return out + self.on_tick(now)

    def _take(self, kind: int, body: bytes, now: int, out: "list[Any]") -> str:
        """The name of the counter for a box that changes nothing, "" for one that does."""
        try:
            if kind == ROW:
                return self._take_row(decode_row(body), out)
            if kind == NEIGHBOUR:
                new = decode_neighbour(body)
                if new.label >= self._labels:
                    return "unusable"
                why = self.neighbours.add(new, self._hour(now))
                return "" if why == "kept" else why
            if kind == CLEAR:
                what, version = decode_clear(body)
                if what == CLEAR_NEIGHBOURS:
                    self.neighbours.clear()
                else:
                    self._clear_head(version, out)
                return ""
        except FrameError:
            return "unusable"
        return "unknown"

    def _take_row(self, row: "Row", out: "list[Any]") -> str:
        if row.count > min(self._set["rows"], self._labels):
            return "unusable"
        kept = [r for r in self._rows if r[:2] + r[3:4] == row[:2] + row[3:4]]
        self._rows = [r for r in kept if r.index != row.index] + [row]
        if len(self._rows) == row.count:
            self.head = Head(row.version, row.model_id, self._rows)
            self._rows = []
            fields = {"version": row.version, "rows": row.count}
            out.append(Event(self._ids.next(), "info", "head-applied", fields))
        return ""

    def _clear_head(self, version: int, out: "list[Any]") -> None:
        self._rows = [r for r in self._rows if r.version != version]
        if self.head is not None and self.head.version == version:
            self.head = None
            out.append(Event(self._ids.next(), "info", "head-cleared", {"version": version}))

    # -- writing and reporting -----------------------------------------------------------

    def on_tick(self, now: int) -> "list[Any]":
        out: list[Any] = []
        if now >= self._save_at or (self._fresh >= SAVE_BOXES and not self._fails):
            self.flush(out)
        if 0 <= self._ask_at <= now:
            self._hello(now)
        return out

    def flush(self, out: "list[Any]") -> None:
        """Write what is not yet durable now."""
        if self._fresh and self._saving is None:
            effect_id = self._ids.next()
            self._saving = effect_id, (self.taken, self.head), self._fresh
            self._fresh = 0
            out.append(Keep(effect_id, self.state()))

    def owns(self, effect_id: int) -> bool:
        return self._saving is not None and self._saving[0] == effect_id

    def on_done(self, now: int) -> "list[Any]":
        assert self._saving is not None
        self._durable = self._saving[1]
        self._saving = None
        self._fails = 0
        self._save_at = now + SAVE_MS
        self._hello(now)
        return self.on_tick(now)

    def on_error(self, error: Exception, now: int) -> "list[Any]":
        assert self._saving is not None
        self._fresh += self._saving[2]
        self._saving = None
        self._save_at = now + min(RETRY_MS << min(self._fails, 5), RETRY_CAP_MS)
        self._fails += 1
        self._count("not-written")
        return [Event(self._ids.next(), "error", "mail-not-written", {"error": str(error)})]

    def _hello(self, now: int) -> None:
        self.ask = True
        self._asked_ms = now
        self._ask_at = -1

    def wakes(self) -> "list[int]":
        times = []
        if self._fresh and self._saving is None:
            times.append(self._save_at)
        if self._ask_at >= 0:
            times.append(self._ask_at)
        return times

    def busy(self) -> bool:
        return self._fresh > 0 or self._saving is not None

    def report(self, model_id: "bytes | None") -> "tuple[int | None, int]":
        """(head version in force, highest number taken) for a hello: what is durable."""
        taken, head = self._durable
        head = self._fitting(head, model_id)
        return (None if head is None else head.version), taken

    def state(self) -> bytes:
        """What to write: at most STATE_MAX bytes."""
        rows = [] if self.head is None else self.head.rows
        parts = [[encode(list(row)) for row in r] for r in (rows, self._rows)]
        table = self.neighbours.data
        return encode([1, self.counter, self.taken, self._domain_id, parts[0], parts[1], table])

    def _read(self, data: "bytes | None") -> None:
        if data is None:
            return
        try:
            content: Any = decode(data)
            if content[0] != 1:
                return  # of another version of the agent: begin again
            if content[3] == self._domain_id:
                whole = [decode_row(body) for body in content[4]]
                if whole:
                    self.head = Head(whole[0].version, whole[0].model_id, whole)
                self._rows = [decode_row(body) for body in content[5]]
                self.neighbours = self._table(content[6])
            self.counter, self.taken = content[1], content[2]
        except (CborError, FrameError, TypeError, ValueError, IndexError):
            self.head = None
            self._rows = []

    def _table(self, data: bytes) -> Neighbours:
        s = self._set
        return Neighbours(s["neighbours"], s["depth"], s["ttl_h"], data)

    # -- decisions -----------------------------------------------------------------------

    def decide(
        self, scores: bytes, vector: bytes, model_id: "bytes | None", now: int
    ) -> "Advice | None":
        """What head and neighbours make of a model's output; None when none took part."""
        head = self._fitting(self.head, model_id)
        version = None
        if head is not None:
            scores = head.scores(vector)
            version = head.version
            self._count("by-head")
        said = vote(vector, scores, self.neighbours, self._hour(now))
        if said.parents:
            self._count("synthesised")
        elif head is None:
            return None
        return Advice(said.label, said.confidence, said.parents, said.depth, version)

    def _fitting(self, head: "Head | None", model_id: "bytes | None") -> "Head | None":
        return head if head is not None and head.fits(model_id, self._labels) else None

    def _hour(self, now: int) -> int:
        return (self._age_s + now // 1000) // 3600

    def status(self, model_id: "bytes | None") -> "dict[str, Any]":
        head, taken = self.report(model_id)
        return {
            "taken": taken,
            "head": head,
            "rows_waiting": len(self._rows),
            "neighbours": len(self.neighbours),
            "counters": dict(self.counters),
        }

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1


def encode_clear(what: int, version: int = 0) -> bytes:
    """The body of a box of type 3. FrameError("bad-field") when a value is out of range."""
    body = encode([what, version])
    decode_clear(body)  # what a reader would refuse is not sent
    return body


def decode_clear(body: bytes) -> "tuple[int, int]":
    """(what, head version). FrameError("not-cbor" or "bad-field")."""
    try:
        values = decode(body, 1, 2)
    except CborError as error:
        raise FrameError("not-cbor", str(error))
    if type(values) is not list or len(values) != 2:
        raise FrameError("bad-field", "a clear is an array of 2")
    what, version = values
    if type(what) is not int or not CLEAR_HEAD <= what <= CLEAR_NEIGHBOURS:
        raise FrameError("bad-field", "what")
    if type(version) is not int or not 0 <= version <= 0xFFFF:
        raise FrameError("bad-field", "version")
    return what, version
