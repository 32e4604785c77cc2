"""From an outcome to a durable record. No I/O.

    draft       kept in        left by
    waiting     queue          Append emitted; one at a time, because its number is the next
    appended    unsynced       Sync emitted: batch full, batch_ms old, urgent, or sync "every"
    syncing     syncing        Sync done: durable. Sync failed: back to unsynced, tried again
                               after a growing pause
    coalesced   (gone)         a newer outcome of its label took its place and its number
                               while it was unsynced

Records are sealed when their number is known, just before Append. A coalesced record is
sealed again under the same number; the first frame never left RAM.
"""

from edge_agent import frame
from edge_agent.effects import Append, Committed, Sync
from edge_agent.errors import FrameError, JournalFull

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from edge_agent.config import Config
    from edge_agent.effects import Ids

QUEUE_MAX = 16  # drafts waiting for their Append
RETRY_MS = 2000  # after an append failed for another reason than a full journal
SYNC_RETRY_MS = 1000
SYNC_RETRY_CAP_MS = 60000


class Draft:
    """An outcome on its way into the journal."""

    __slots__ = ("coalesce", "frame", "key", "priority", "record", "seq", "ttl_s")

    def __init__(self, record: "Any", priority: int, ttl_s: int, coalesce: bool, key: str) -> None:
        self.record = record  # frame.OutcomeRecord, journal and seq not yet filled in
        self.priority = priority
        self.ttl_s = ttl_s
        self.coalesce = coalesce
        self.key = key
        self.seq = 0
        self.frame = b""


class Intake:
    """Numbers, seals, appends, syncs.

    note(out, level, name, fields): count and tell.  ledger: emit Committed effects.
    Attributes: journal (the id new records get), next_seq, hold (append nothing for now),
    stopping (sync at once).
    """

    def __init__(
        self,
        settings: "Config",
        ids: "Ids",
        keys: "frame.DeviceKeys",
        journal: bytes,
        next_seq: int,
        note: "Callable[[list[Any], str, str, dict[str, Any]], None]",
        ledger: bool,
    ) -> None:
        self._set = settings
        self._ids = ids
        self._keys = keys
        self._note = note
        self._ledger = ledger
        self.journal = journal
        self.next_seq = next_seq
        self.hold = False
        self.stopping = False
        self.coalesced = 0
        self._pending: dict[int, Draft | None] = {}  # effect id -> Append's draft, None: Sync
        self._queue: list[Draft] = []
        self._appending = False
        self._append_at = 0
        self._unsynced: list[Draft] = []
        self._syncing: list[Draft] = []
        self._sync_at = 0
        self._sync_fails = 0

    def add(self, draft: Draft, now: int) -> "list[Any]":
        out: list[Any] = []
        if len(self._queue) >= QUEUE_MAX:
            self._note(out, "error", "queue-full", {})
            return out
        self._queue.append(draft)
        return out + self.advance(now)

    def owns(self, effect_id: int) -> bool:
        return effect_id in self._pending

    def on_done(self, effect_id: int, result: "Any", now: int) -> "tuple[list[Any], list[Any]]":
        """(effects, refs that have become durable)."""
        draft = self._pending.pop(effect_id)
        if draft is None:
            return self._synced(result, now), result
        return self._appended(draft, now), []

    def on_error(self, effect_id: int, error: Exception, now: int) -> "tuple[list[Any], bool]":
        """(effects, whether the journal should be asked what it holds)."""
        draft = self._pending.pop(effect_id)
        out: list[Any] = []
        fields = {"error": str(error)}
        if draft is None:
            for old in self._syncing:
                # Some of it may be on flash: its number is taken.
                old.coalesce = False
            self._unsynced = self._syncing + self._unsynced
            self._syncing = []
            pause = min(SYNC_RETRY_MS << min(self._sync_fails, 6), SYNC_RETRY_CAP_MS)
            self._sync_at = now + pause
            self._sync_fails += 1
            self._note(out, "error", "sync-failed", fields)
            return out, False
        self._appending = False
        if isinstance(error, JournalFull):
            # The journal counted it; the number stays free.
            self._note(out, "error", "journal-full", fields)
            return out + self.advance(now), False
        self._note(out, "error", "append-failed", fields)
        self._queue.insert(0, draft)
        self._append_at = now + RETRY_MS
        return out, True

    def on_tick(self, now: int) -> "list[Any]":
        out: list[Any] = []
        if self._unsynced and not self._syncing and now >= self._sync_at:
            self.flush(out)
        return out + self.advance(now)

    def wakes(self) -> "list[int]":
        times = []
        if self._unsynced and not self._syncing:
            times.append(self._sync_at)
        if self._queue and not self._appending and not self.hold:
            times.append(self._append_at)
        return times

    def busy(self) -> bool:
        return bool(self._queue or self._unsynced or self._syncing or self._appending)

    def unsynced(self) -> int:
        return len(self._unsynced) + len(self._syncing)

    def queued(self) -> int:
        return len(self._queue)

    def adopt(self, journal: bytes, next_seq: int) -> None:
        """The journal goes on under another id."""
        self.journal = journal
        self.next_seq = next_seq
        self._append_at = 0

    def flush(self, out: "list[Any]") -> None:
        """Sync what is unsynced now."""
        if self._unsynced and not self._syncing:
            self._syncing = self._unsynced
            self._unsynced = []
            out.append(Sync(self._new(None)))

    def advance(self, now: int) -> "list[Any]":
        """Append the next draft, if none is under way."""
        out: list[Any] = []
        while self._queue and not self._appending and not self.hold and now >= self._append_at:
            draft = self._queue.pop(0)
            draft.seq = self._seq_for(draft)
            try:
                draft.frame = self._seal(draft)
            except FrameError as error:
                self._note(out, "error", "seal-" + error.reason, {"detail": error.detail})
                continue
            self._appending = True
            out.append(
                Append(
                    self._new(draft),
                    self.journal,
                    draft.seq,
                    draft.frame,
                    draft.priority,
                    draft.ttl_s,
                    self._keys.generation,
                )
            )
        return out

    def _seal(self, draft: Draft) -> bytes:
        r = draft.record
        record = frame.OutcomeRecord(
            self.journal,
            draft.seq,
            r.boot,
            r.uptime_ms,
            r.utc_s,
            r.domain_id,
            r.outcome,
            r.fingerprint,
        )
        return frame.seal(self._keys, record, self._set.encrypt, self._set.pad, self._set.small)

    def _seq_for(self, draft: Draft) -> int:
        """The next number, or that of an unsynced outcome which this one replaces."""
        if draft.coalesce:
            for old in self._unsynced:
                if old.coalesce and old.record.outcome.label == draft.record.outcome.label:
                    return old.seq
        return self.next_seq

    def _appended(self, draft: Draft, now: int) -> "list[Any]":
        self._appending = False
        out: list[Any] = []
        if draft.seq < self.next_seq:
            self.coalesced += 1
            self._unsynced = [d for d in self._unsynced if d.seq != draft.seq]
        else:
            self.next_seq = draft.seq + 1
            if not self._unsynced and not self._syncing and not self._sync_fails:
                self._sync_at = now + self._set.batch_ms
        self._unsynced.append(draft)
        at_once = draft.priority == 0 or self._set.sync == "every" or self.stopping
        due = at_once or len(self._unsynced) >= self._set.batch
        if due and (not self._sync_fails or now >= self._sync_at):
            self.flush(out)
        return out + self.advance(now)

    def _synced(self, refs: "list[Any]", now: int) -> "list[Any]":
        done, self._syncing = self._syncing, []
        self._sync_fails = 0
        if self._unsynced:
            self._sync_at = now + self._set.batch_ms
        if not self._ledger:
            return []
        done.sort(key=lambda d: d.seq)
        records = [(d.key, d.seq, d.frame) for d in done]
        return [Committed(self._ids.next(), refs[0].journal if refs else self.journal, records)]

    def _new(self, draft: "Draft | None") -> int:
        effect_id = self._ids.next()
        self._pending[effect_id] = draft
        return effect_id
