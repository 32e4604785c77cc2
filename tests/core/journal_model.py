"""A journal and, beside it, what it has promised: for the tests that cut the power.

`Workbench` performs operations on a real journal over a `SimFlash` and keeps the books:
which frames were made durable under which identity, which were let go, what may have
been dropped. `check` opens what is left after a cut and compares.
"""

from sim_flash import PowerCut, Prng, SimFlash

from edge_agent.errors import JournalError, JournalFull, StoreError
from edge_agent.journal import Journal

SMALL = {
    "segment_bytes": 1024,
    "max_segments": 14,
    "reserve": (1, 2, 0),
    "quarantine_segments": 2,
}


def contents(journal: Journal, uptime_s: int = 0) -> "dict[tuple[bytes, int], bytes]":
    """Every deliverable record by identity, read the way the agent does."""
    out = {}
    for priority in range(3):
        after = None
        while True:
            refs = journal.scan(priority, after, 8, uptime_s)
            if not refs:
                break
            for ref in refs:
                try:
                    data = journal.read(ref)
                except JournalError:
                    continue
                key = (ref.journal, ref.seq)
                if key in out:
                    raise AssertionError("record %d is there twice" % ref.seq)
                out[key] = data
            after = refs[-1]
    return out


class Workbench:
    """durable: identity -> frame of every record that `sync` ever returned.
    tried: identity -> every frame that a write of it was attempted with.
    held: identities that the journal must still have.
    """

    def __init__(self, store: SimFlash, seed: int = 1, options=None) -> None:
        self.store = store
        self.entropy = Prng(seed + 77)
        self.prng = Prng(seed)
        self.options = options or SMALL
        self.durable = {}
        self.tried = {}
        self.held = set()
        self.freed_saved = set()
        self.freed = set()
        self.refused = set()
        self.batch = {}
        self.boot = 0
        self.uptime = 0
        self.journal = None

    def open(self) -> None:
        self.journal = Journal.open(self.store, self.entropy, **self.options)
        self.boot = self.journal.boot
        self.batch = {}
        self.uptime = 0
        log = self.journal._log
        write_state = log._write_state

        def noted():
            write_state()
            self.saved = True

        log._write_state = noted
        self.saved = True

    # -- operations ---------------------------------------------------------

    def append(self, priority: int, size: int, ttl_s: int = 0) -> bool:
        j = self.journal
        frame = self.prng.bytes(size)
        seq = j.next_seq
        try:
            j.append(seq, frame, priority, ttl_s, self.uptime)
        except JournalFull:
            return False
        self.batch[(j.journal_id, seq)] = frame
        return True

    def coalesce(self, size: int) -> None:
        if not self.batch:
            return
        key = sorted(self.batch)[-1]
        frame = self.prng.bytes(size)
        try:
            self.journal.append(key[1], frame, 1, 0, self.uptime)
        except (JournalFull, JournalError):
            return
        self.batch[key] = frame

    def sync(self) -> None:
        for key, frame in self.batch.items():
            self.tried.setdefault(key, []).append(frame)
        refs = self.journal.sync(self.uptime)
        for ref in refs:
            key = (ref.journal, ref.seq)
            self.durable[key] = self.batch[key]
            self.held.add(key)
        for key in self.batch:
            if key not in self.held:  # pushed out by a more important one: to be counted
                self.held.add(key)
                self.durable[key] = self.batch[key]
        self.batch = {}

    def free(self, ranges) -> int:
        journal = self.journal.journal_id
        return self.free_of(journal, ranges)

    def free_of(self, journal: bytes, ranges) -> int:
        count = self.journal.free(journal, ranges)
        for key in list(self.held):
            for first, last in ranges:
                if key[0] == journal and first <= key[1] <= last:
                    self.held.discard(key)
                    self.freed.add(key)
        return count

    def quarantine(self) -> None:
        refs = self.journal.scan(1, None, 2, self.uptime)
        if refs:
            self.journal.quarantine(refs[-1], 9)
            key = (refs[-1].journal, refs[-1].seq)
            self.held.discard(key)
            self.freed.add(key)
            self.refused.add(key)

    # -- checks -------------------------------------------------------------

    def settle(self) -> "set":
        """After an operation: compare the running journal, take note of counted drops.

        Returns the identities that were dropped, and counted, since the last call.
        """
        j = self.journal
        before = dict(j.drops)
        now = contents(j, self.uptime)
        for key in now:
            if now[key] != self.durable[key]:
                raise AssertionError("record %d changed" % key[1])
            if key in self.freed:
                raise AssertionError("record %d came back" % key[1])
        missing = self.held - set(now)
        drops = dict(j.drops)
        counted = sum([drops.get(r, 0) for r in (1, 3, 5, 6)])
        if counted - self.counted != len(missing):
            raise AssertionError(
                "%d records are missing, %d are counted %r %r"
                % (len(missing), counted - self.counted, before, drops)
            )
        self.counted = counted
        self.held -= missing
        self.freed |= missing
        if self.saved and j._log.frees == 0:
            self.freed_saved |= self.freed
        self.saved = False
        return missing

    counted = 0  # drops that were accounted for
    saved = False  # the state, since the last settle

    def promised(self) -> "tuple[int, int, int]":
        """(highest seq that was ever durable, this boot, records dropped by the quota).

        The first two are never used again, the third does not shrink.
        """
        highest = max([key[1] for key in self.durable] + [0])
        return highest, self.boot, self.journal.drops.get(1, 0) if self.journal else 0

    def check(self, store: SimFlash, must, may_return, promised) -> "tuple":
        """Start on `store` and compare. must: identities that have to be there.

        may_return: identities that may be there although they were let go.
        promised: what `promised` said before the cut.
        """
        j = Journal.open(store, Prng(5), **self.options)
        now = contents(j)
        for key in must:
            if now.get(key) != self.durable[key]:
                raise AssertionError("record %d is lost or changed" % key[1])
        for key in now:
            if key in self.durable:
                if now[key] != self.durable[key]:
                    raise AssertionError("record %d changed" % key[1])
                if key not in must and key not in may_return:
                    raise AssertionError("record %d came back" % key[1])
            elif now[key] not in self.tried.get(key, ()):
                raise AssertionError("record %d was never written" % key[1])
        highest = max([key[1] for key in now] + [promised[0]])
        if j.next_seq <= highest:
            raise AssertionError("seq %d would be used again" % j.next_seq)
        if j.boot <= promised[1]:
            raise AssertionError("boot %d came before" % j.boot)
        for journal, floor, following in j.held():
            for key in now:
                if key[0] == journal and not floor <= key[1] < following:
                    raise AssertionError("record %d is outside of held()" % key[1])
        if j.drops.get(5) or j.drops.get(6) or j.stats()["corrupt"]:
            raise AssertionError("a power cut was taken for damage: %r" % (j.drops,))
        return j, now

    def adopt(self, store: SimFlash) -> None:
        """Go on with the store after a cut; what it holds is now what is promised."""
        self.store = store
        self.open()
        now = contents(self.journal)
        for key in now:
            self.durable[key] = now[key]
        self.held = set(now)
        self.freed = set(self.durable) - self.held
        self.freed_saved = set()
        drops = self.journal.drops
        self.counted = sum([drops.get(r, 0) for r in (1, 3, 5, 6)])

    def go_on(self, store: SimFlash, j: Journal, now) -> None:
        """Use the journal after the cut, then pull the plug once more."""
        added = {}
        for priority in (0, 1, 1, 2):
            seq = j.next_seq
            try:
                j.append(seq, b"after %d" % seq, priority)
            except JournalFull:
                continue
            added[(j.journal_id, seq)] = b"after %d" % seq
            j.sync()
        dropped = j.drops.get(1, 0)
        j = Journal.open(store.power_cycle(3), Prng(6), **self.options)
        there = contents(j)
        for key in added:
            if there.get(key) != added[key]:
                raise AssertionError("record %d, written after the cut, is lost" % key[1])
        lost = len(set(now) - set(there))
        if lost > dropped:
            raise AssertionError("%d records are lost, %d counted" % (lost, dropped))


__all__ = ("SMALL", "PowerCut", "StoreError", "Workbench", "contents")
