"""Cut the power at every write boundary of long workloads, and look at what is left."""

import contextlib
import sys
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))

from journal_model import SMALL, Workbench, contents
from sim_flash import PowerCut, Prng, SimFlash

import edge_agent.journal_log as journal_log
import edge_agent.journal_start as journal_start
import edge_agent.segment as segment
from edge_agent.errors import StoreError
from edge_agent.journal import Journal
from edge_agent.journal_state import SLOTS, State, decode


def script(bench, rounds, prng, hoard):
    """The workload, as a sequence of operations of a workbench."""
    for i in range(rounds):
        bench.uptime += 1
        what = prng.below(16)
        if hoard and 8 <= what < 11:
            what = 0  # fewer frees, so that the quota has to drop
        if what < 6:
            for _ in range(1 + prng.below(4)):
                bench.append(prng.below(3), 20 + prng.below(80))
            yield bench.sync
        elif what == 6:
            bench.append(0, 40)
            bench.coalesce(50)
            yield bench.sync
        elif what == 7:
            bench.append(2, 30, ttl_s=3)
            yield bench.sync
        elif what < 12:
            held = sorted(bench.held, key=lambda k: k[1])
            if held:
                first = held[prng.below(min(4, len(held)))]
                last = first[1] + prng.below(10)
                yield lambda f=first, e=last: bench.free_of(f[0], [(f[1], e)])
        elif what == 12:
            yield bench.quarantine
        elif what == 13:
            yield bench.journal.save
        elif what == 14 and i % 3 == 0:
            yield bench.journal.mint
        else:
            yield lambda: reopen(bench)


def reopen(bench):
    bench.journal.close()
    bench.open()


def run(seed, rounds, tries, nested=0, hoard=False):
    """All cuts of one workload, `tries` outcomes each; how many there were."""
    store = SimFlash(seed)
    bench = Workbench(store, seed)
    prng = Prng(seed + 1000)
    snapshots = []
    store.on_change = lambda: snapshots.append(store.clone())
    cuts = 0
    bench.open()
    for operation in script(bench, rounds, prng, hoard):
        snapshots.clear()
        held, saved = set(bench.held), set(bench.freed_saved)
        promised = bench.promised()
        operation()
        taken = list(snapshots)
        drops = bench.journal.drops.get(1, 0) - promised[2]
        dropped = bench.settle()
        must = (held & bench.held) - dropped
        # New records of this operation may be there, older ones may return.
        may = (bench.held | bench.freed | dropped) - saved
        for snapshot in taken:
            for k in range(tries):
                cut = snapshot.power_cycle(prng.below(1 << 30))
                again = cut.clone()
                after, there = bench.check(cut, must, may, promised)
                assert cut.listed == 0 or promised[1] == 0
                if drops == len(dropped):
                    missing = len(dropped & held - set(there))
                    expired = after.drops.get(3, 0) - bench.journal.drops.get(3, 0)
                    counted = after.drops.get(1, 0) + max(0, expired) - promised[2]
                    assert counted >= missing, "uncounted drops"
                if k % 2 == 0:
                    bench.go_on(cut, after, there)
                cuts += 1
                for at in range(1, nested + 1) if k == 0 else ():
                    cuts += second_cut(bench, again, at, must, may, promised)
        snapshots.clear()
    return cuts


def second_cut(bench, before, at, must, may, promised):
    """Cut the start-up after a cut, then start again."""
    store = before.clone()
    store.cut_at = at
    try:
        Journal.open(store, Prng(9), **SMALL)
    except PowerCut:
        bench.check(store.power_cycle(at), must, may, promised)
        return 1
    return 0


def test_every_write_boundary_of_long_workloads():
    cuts = 0
    for seed in range(6):
        cuts += run(seed, rounds=66, tries=5, nested=4)
    cuts += run(7, rounds=200, tries=1, nested=1, hoard=True)
    print(cuts, "cuts")
    assert cuts >= 10000


def test_the_newest_state_rots_at_any_moment():
    for seed in range(3):
        store = SimFlash(seed)
        bench = Workbench(store, seed)
        prng = Prng(seed)
        snapshots = []
        store.on_change = lambda store=store, to=snapshots: to.append(store.clone())
        bench.open()
        for operation in script(bench, 80, prng, False):
            snapshots.clear()
            promised = bench.promised()
            operation()
            taken = list(snapshots)
            held = set(bench.held)
            bench.settle()
            for snapshot in taken:
                rotten(bench, snapshot.power_cycle(prng.below(1 << 30)), held, promised)
            snapshots.clear()


def rotten(bench, store, held, promised):
    states = {}
    for slot in SLOTS:
        state = decode(store.read(slot, 0, 1 << 16)) if store.size(slot) > 0 else None
        if state is not None:
            states[state.generation] = slot
    if len(states) < 2:
        return
    store.flip(states[max(states)], 40)
    j = Journal.open(store, Prng(5), **SMALL)
    assert j.journal_id != bench.journal.journal_id
    assert j.next_seq > promised[0]
    now = contents(j)
    for key, frame in now.items():
        assert frame == bench.durable.get(key, frame)
        assert key in bench.durable or frame in bench.tried[key]
        assert key[1] < j.next_seq


def full_disk(seed):
    """Frees on a disk with no room for the state, then a sync; cut everywhere."""
    options = dict(SMALL, segment_bytes=4096, max_segments=30)
    store = SimFlash(seed, capacity=9)
    bench = Workbench(store, seed, options)
    bench.open()
    prng = Prng(seed)
    while True:
        for priority in (0, 1, 2):
            bench.append(priority, 100 + prng.below(100))
        try:
            bench.sync()
        except StoreError:
            break
        bench.settle()
    for key, frame in bench.batch.items():
        if frame in contents(bench.journal).values():
            bench.held.add(key)
            bench.durable[key] = frame
    bench.settle()
    # Whoever shares the disk takes what is left.
    used = sum(-(-store.size(name) // 4096) for name in store.names() if store.size(name) > 256)
    store.capacity = used - 1
    snapshots, emptied, cuts = [], 0, 0
    store.on_change = lambda: snapshots.append(store.clone())
    for step in range(12):
        snapshots.clear()
        held, saved, promised = set(bench.held), set(bench.freed_saved), bench.promised()
        first = min(bench.held, key=lambda k: k[1], default=None)
        if step % 3 < 2 and first:
            bench.free_of(first[0], [(first[1], first[1] + 25)])
        else:
            with contextlib.suppress(StoreError):
                bench.sync()
        taken = list(snapshots)
        dropped = bench.settle()
        must = (held & bench.held) - dropped
        may = (bench.held | bench.freed | set(bench.batch)) - saved
        for snapshot in taken:
            emptied += any(name[0] in "df" for name in snapshot.names())
            for _ in range(3):
                cut = snapshot.power_cycle(prng.below(1 << 30))
                cut.capacity = 0
                bench.check(cut, must, may, promised)
                cuts += 1
        snapshots.clear()
    return cuts, emptied


def test_cuts_on_a_full_disk():
    results = [full_disk(seed) for seed in range(8)]
    assert sum(cuts for cuts, _ in results) > 300
    assert sum(emptied for _, emptied in results) > 5, "no segment was ever emptied early"


def no_sync_of(first):
    real = SimFlash.sync

    def sync(self, name):
        if not name.startswith(first):
            real(self, name)

    return sync


def sweep_first(self):
    self._sweep()
    self._write_state()


def without_frees(self):
    kept = [(s, s.freed, s.freed_count) for chain in self.chains for s in chain]
    for s, _, _ in kept:
        s.freed, s.freed_count = [], 0
    try:
        return REAL_ENCODE(self)
    finally:
        for s, ranges, count in kept:
            s.freed, s.freed_count = ranges, count


def believe_the_tail(store, state, seg, limit=-1):
    found = REAL_TAIL(store, state, seg, limit)
    seg.flags &= ~segment.SEALED
    return found


REAL_ENCODE = State.encode
REAL_TAIL = journal_start.read_tail
REAL_SAVE = journal_log.save


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [
        (SimFlash, "sync", no_sync_of("1-")),
        (SimFlash, "sync", no_sync_of("state")),
        (journal_log, "save", lambda store, state, slot: REAL_SAVE(store, state, 0)),
        (journal_log.Log, "save", sweep_first),
        (State, "encode", without_frees),
        (journal_start, "_finish", lambda state, low: None),
        (journal_start, "read_tail", believe_the_tail),
        (segment.Segment, "floor", lambda self: self.last),
    ],
    ids=[
        "segments not synced",
        "state not synced",
        "one state slot",
        "files removed before the state is saved",
        "frees not saved",
        "seqs of the tail ignored",
        "appending behind a torn tail",
        "floor too high",
    ],
)
def test_the_check_can_fail(monkeypatch, where, name, fault):
    monkeypatch.setattr(where, name, fault)
    with pytest.raises((AssertionError, StoreError)):
        for seed in range(10):
            run(seed, rounds=60, tries=3)


class Life(RuleBasedStateMachine):
    """Any order of operations, power cuts and full disks, against the books."""

    @initialize(seed=st.integers(0, 1 << 20))
    def begin(self, seed):
        self.bench = Workbench(SimFlash(seed), seed)
        self.bench.open()

    @rule(sizes=st.lists(st.integers(1, 200), min_size=1, max_size=6), priority=st.integers(0, 2))
    def append(self, sizes, priority):
        for size in sizes:
            self.bench.append(priority, size)

    @rule(size=st.integers(1, 200))
    def coalesce(self, size):
        self.bench.coalesce(size)

    @rule()
    def sync(self):
        self.bench.sync()

    @rule(first=st.integers(0, 40), length=st.integers(0, 40))
    def free(self, first, length):
        held = sorted(self.bench.held, key=lambda k: k[1])
        if held:
            key = held[first % len(held)]
            self.bench.free_of(key[0], [(key[1], key[1] + length)])

    @rule()
    def quarantine(self):
        self.bench.quarantine()

    @rule()
    def mint(self):
        if not self.bench.batch:
            self.bench.journal.mint()

    @rule()
    def restart(self):
        self.bench.sync()
        reopen(self.bench)

    @rule()
    def full_disk(self):
        """A sync that fails, and one that does not."""
        store = self.bench.store
        store.capacity = 1
        try:
            self.bench.sync()
        except StoreError:
            store.capacity = 0
            self.bench.sync()
        store.capacity = 0

    @rule(at=st.integers(1, 12), what=st.integers(0, 3), seed=st.integers(0, 1 << 20))
    def cut(self, at, what, seed):
        bench = self.bench
        held, saved, promised = set(bench.held), set(bench.freed_saved), bench.promised()
        going = set()  # may be let go before the cut, or not
        if what == 0 and held:
            first = min(held, key=lambda k: k[1])
            going = {k for k in held if k[0] == first[0] and k[1] <= first[1] + 40}
        elif what == 1:
            going = {(r.journal, r.seq) for r in bench.journal.scan(1, None, 2, bench.uptime)}
        bench.store.cut_at = at
        try:
            if what == 0:
                self.free(0, 40)
            elif what == 1:
                bench.quarantine()
            elif what == 2:
                bench.journal.save()
            bench.sync()
            reopen(bench)
        except PowerCut:
            pass
        bench.store.cut_at = -1
        drops = bench.journal.drops
        dropped = set()
        if sum(drops.get(r, 0) for r in (1, 3)) > bench.counted:
            dropped = held  # some of them went, and were counted: not known which
        must = (held & bench.held) - dropped - going
        may = (set(bench.durable) | held) - saved
        after = bench.store.power_cycle(seed)
        bench.check(after.clone(), must, may, promised)
        bench.adopt(after)

    @invariant()
    def books_agree(self):
        if hasattr(self, "bench"):
            self.bench.settle()


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None, phases=(Phase.generate,)
)
