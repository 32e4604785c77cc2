import sys
import unittest

from journal_model import SMALL, Workbench, contents
from sim_flash import ENOSPC, PowerCut, Prng, SimFlash

from edge_agent.errors import ConfigError, JournalError, JournalFull, StoreError
from edge_agent.journal import MAX_BATCH, Journal
from edge_agent.journal_state import MAX_STATE, SLOTS, State, decode
from edge_agent.segment import RECORD_BYTES, Segment, left_name, segment_name, walk

STEP = 7 if sys.implementation.name == "micropython" else 1


def small(store, seed=1, **more):
    options = dict(SMALL)
    for name in more:
        options[name] = more[name]
    return Journal.open(store, Prng(seed), **options)


def fill(journal, count, size=50, priority=1, batch=4, ttl_s=0, uptime_s=0):
    """Append and sync records; seq -> frame."""
    out = {}
    for i in range(count):
        seq = journal.next_seq
        out[seq] = bytes([seq & 255, i & 255]) * (size // 2)
        journal.append(seq, out[seq], priority, ttl_s, uptime_s)
        if i % batch == batch - 1:
            journal.sync(uptime_s)
    journal.sync(uptime_s)
    return out


def frames(journal):
    return {key[1]: data for key, data in contents(journal).items()}


class TestRecords(unittest.TestCase):
    def test_what_was_synced_is_read_back_after_a_restart(self):
        store = SimFlash(1)
        j = small(store)
        sent = fill(j, 30)
        self.assertEqual(frames(j), sent)
        again = small(store.power_cycle())
        self.assertEqual(frames(again), sent)
        self.assertEqual(again.next_seq, 31)
        self.assertEqual(again.boot, 2)
        self.assertEqual(again.journal_id, j.journal_id)

    def test_a_wake_goes_on_with_the_boot_it_fell_asleep_in(self):
        store = SimFlash(1)
        j = small(store)
        sent = fill(j, 3, uptime_s=100)
        j.close()
        store = store.power_cycle()
        j = small(store, woken=(1, 0))
        self.assertEqual((j.boot, j.age_base_s, j.next_seq), (1, 0, 4))
        # Uptime goes on, so what waits gets older by what has passed, not twice.
        for seq, data in fill(j, 1, uptime_s=160).items():
            sent[seq] = data
        self.assertEqual(j.stats(160)["oldest_s"], 60)
        j.close()
        self.assertEqual(frames(small(store.power_cycle(), woken=(1, 0))), sent)

    def test_a_wake_that_is_not_the_last_boot_is_a_new_one(self):
        store = SimFlash(1)
        fill(small(store), 3, uptime_s=100)
        for woken, boot in (((7, 0), 2), ((1, 0), 3), ((0, 0), 4)):
            store = store.power_cycle()
            j = small(store, woken=woken)
            self.assertEqual((j.boot, j.age_base_s), (boot, 100))

    def test_sync_returns_the_refs_in_order_and_scan_gives_the_same(self):
        j = small(SimFlash(1))
        for priority in (1, 0, 2, 1):
            j.append(j.next_seq, b"x", priority)
        refs = j.sync()
        self.assertEqual([r.seq for r in refs], [1, 2, 3, 4])
        self.assertEqual([r.priority for r in refs], [1, 0, 2, 1])
        self.assertEqual(j.scan(1), [refs[0], refs[3]])
        self.assertEqual(j.scan(1, refs[0]), [refs[3]])
        self.assertEqual(j.scan(1, None, 1), [refs[0]])
        self.assertEqual(j.sync(), [])

    def test_a_record_in_ram_cannot_be_read_nor_freed(self):
        j = small(SimFlash(1))
        ref = j.append(1, b"x")
        with self.assertRaises(JournalError):
            j.read(ref)
        self.assertEqual(j.free(j.journal_id, [(1, 1)]), 0)
        self.assertEqual(len(j.sync()), 1)
        self.assertEqual(len(j.scan(1)), 1)

    def test_seqs_come_in_order_and_only_an_unsynced_one_is_replaced(self):
        j = small(SimFlash(1))
        j.append(1, b"old", 1)
        j.append(1, b"new", 0)
        for seq in (0, 3):
            with self.assertRaises(JournalError):
                j.append(seq, b"x")
        (ref,) = j.sync()
        self.assertEqual((ref.priority, j.read(ref)), (0, b"new"))
        self.assertEqual(j.drops, {4: 1})
        self.assertEqual(j.gone(), [])
        with self.assertRaises(JournalError):
            j.append(1, b"again")

    def test_input_out_of_range_is_refused(self):
        j = small(SimFlash(1))
        for frame, priority in ((b"", 1), (bytes(513), 1), (b"x", 3), (b"x", -1)):
            with self.assertRaises(JournalError):
                j.append(1, frame, priority)
        j.append(1, bytes(512))
        for bad in (
            {"segment_bytes": 512},
            {"max_segments": 9},
            {"max_segments": 241},
            {"reserve": (1, 2)},
            {"policy": ("drop-oldest", "drop-new", "drop-all")},
            {"quarantine_segments": 0},
        ):
            with self.assertRaises(ConfigError):
                small(SimFlash(1), 1, **bad)

    def test_held_tells_the_floor_of_each_journal_id(self):
        store = SimFlash(1)
        j = small(store)
        first = j.journal_id
        self.assertEqual(j.held(), [(first, 1, 1)])
        fill(j, 10)
        second = j.mint()
        fill(j, 5)
        self.assertEqual(j.held(), [(second, 11, 16), (first, 1, 11)])
        j.free(first, [(1, 4)])
        # A power cut would undo the frees, so the floor waits for the state.
        self.assertEqual(j.held()[1], (first, 1, 11))
        j.save()
        self.assertEqual(j.held()[1], (first, 5, 11))
        j.free(first, [(5, 10)])
        self.assertEqual(j.held(), [(second, 11, 16)])
        self.assertEqual(small(store.power_cycle()).held(), [(second, 11, 16)])

    def test_small_things_are_remembered(self):
        store = SimFlash(1)
        j = small(store)
        j.down_counter = 1 << 60
        j.cfg_version = 77
        j.append(1, b"x", 1, 0, 100, 3)
        j.append(2, b"x", 1, 0, 100, 2)
        j.sync(100)
        j.save()
        j = small(store.power_cycle())
        self.assertEqual((j.down_counter, j.cfg_version, j.age_base_s), (1 << 60, 77, 100))
        self.assertEqual(j.oldest_generation(), 2)
        j.free(j.journal_id, [(1, 2)])
        self.assertEqual(j.oldest_generation(), 2, "a power cut would undo the free")
        j.save()
        self.assertIsNone(j.oldest_generation())


class TestFree(unittest.TestCase):
    def test_any_order_and_twice(self):
        store = SimFlash(1)
        j = small(store)
        fill(j, 40)
        self.assertEqual(j.free(j.journal_id, [(3, 3), (5, 9)]), 6)
        self.assertEqual(j.free(j.journal_id, [(1, 10)]), 4)
        self.assertEqual(j.free(j.journal_id, [(1, 10), (2, 2)]), 0)
        self.assertEqual(j.free(b"none", [(1, 40)]), 0)
        self.assertEqual(sorted(frames(j)), list(range(11, 41)))
        j.save()
        self.assertEqual(sorted(frames(small(store.power_cycle()))), list(range(11, 41)))

    def test_priorities_interleaved_do_not_split_the_ranges(self):
        j = small(SimFlash(1), 1, segment_bytes=8192)
        for i in range(60):
            j.append(j.next_seq, b"x", i % 3)
            j.sync()
        for i in range(2, 61, 3):
            j.free(j.journal_id, [(i, i)])
        self.assertEqual(j.stats()["ranges"], 1)
        self.assertEqual(j.stats()["pending"], [20, 0, 20])

    def test_ranges_that_do_not_fit_are_forgotten_not_believed(self):
        store = SimFlash(1)
        j = small(store, 1, segment_bytes=16384)
        fill(j, 200, 10)
        count = 0
        for i in range(1, 200, 2):
            count += j.free(j.journal_id, [(i, i)])
        self.assertEqual(count, 32)
        self.assertEqual(j.stats()["pending"], [0, 168, 0])
        self.assertEqual(len(frames(j)), 168)
        self.assertEqual(j.free(j.journal_id, [(1, 200)]), 168)
        self.assertEqual(frames(j), {})

    def test_segments_go_when_all_is_freed(self):
        store = SimFlash(1)
        j = small(store)
        fill(j, 60)
        files = len(store.names())
        self.assertEqual(j.free(j.journal_id, [(1, 60)]), 60)
        self.assertLess(len(store.names()), files - 2)
        self.assertEqual(j.stats()["pending"], [0, 0, 0])

    def test_an_ack_for_what_was_never_written_raises_doubt(self):
        # An older image of this flash was restored, or there are two of it.
        store = SimFlash(1)
        j = small(store)
        fill(j, 10)
        j.save()
        image = store.clone()
        fill(j, 20)
        j = small(image.power_cycle(), 9)
        self.assertEqual(j.next_seq, 11)
        self.assertFalse(j.doubt)
        old = j.journal_id
        self.assertEqual(j.free(old, [(1, 30)]), 10)
        self.assertTrue(j.doubt)
        j.append(11, b"sealed before", journal=old)
        self.assertNotEqual(j.mint(), old)
        self.assertFalse(j.doubt)
        j.append(12, b"sealed after")
        self.assertEqual([r.journal for r in j.sync()], [old, j.journal_id])
        self.assertEqual([r.journal for r in j.scan(1)], [old, j.journal_id])
        with self.assertRaises(JournalError):
            j.append(13, b"x", journal=b"what")


class TestQuota(unittest.TestCase):
    def test_the_oldest_go_and_are_counted(self):
        store = SimFlash(1)
        j = small(store)
        sent = fill(j, 300)
        left = frames(j)
        self.assertEqual(sorted(left), list(range(301 - len(left), 301)))
        self.assertEqual(j.drops, {1: 300 - len(left)})
        self.assertEqual(j.gone(), [(1, 300 - len(left))])
        self.assertEqual(left[300], sent[300])
        # Urgent has one segment in reserve, quarantine and damage two each.
        self.assertEqual(j.stats()["segments"], [0, 9, 0, 0])
        j = small(store.power_cycle())
        self.assertEqual(j.drops, {1: 300 - len(left)})
        self.assertEqual(j.gone(), [(1, 300 - len(left))])

    def test_less_important_records_give_way(self):
        j = small(SimFlash(1))
        fill(j, 200, priority=2)
        self.assertEqual(j.stats()["segments"], [0, 0, 7, 0])
        fill(j, 300, priority=0)
        self.assertEqual(j.stats()["segments"], [8, 0, 0, 0])
        with self.assertRaises(JournalFull):
            j.append(j.next_seq, b"x", 2)
        self.assertEqual(j.drops[2], 1)
        fill(j, 100, priority=1)
        self.assertEqual(j.stats()["segments"], [8, 2, 0, 0])
        self.assertEqual(j.stats()["pending"][2], 0)

    def test_drop_new_refuses_and_drops_nothing(self):
        j = small(SimFlash(1), 1, policy=("drop-oldest", "drop-new", "drop-new"))
        refused = taken = 0
        for _ in range(400):
            try:
                j.append(j.next_seq, bytes(50), 1)
                taken += 1
            except JournalFull:
                refused += 1
            if j.next_seq % 8 == 0:
                j.sync()
        j.sync()
        self.assertGreater(refused, 100)
        self.assertEqual(j.drops, {2: refused})
        self.assertEqual(len(frames(j)), taken)
        j.free(j.journal_id, [(1, 60)])
        j.append(j.next_seq, bytes(50), 1)

    def test_the_batch_is_bounded(self):
        j = small(SimFlash(1))
        for _ in range(MAX_BATCH):
            j.append(j.next_seq, b"x")
        with self.assertRaises(JournalFull):
            j.append(j.next_seq, b"x")
        self.assertEqual(len(j.sync()), MAX_BATCH)

    def test_expiry_needs_no_clock(self):
        store = SimFlash(1)
        j = small(store)
        fill(j, 3, ttl_s=100, uptime_s=10)
        fill(j, 3, ttl_s=0, uptime_s=20)
        j.append(7, b"x", 1, 0, 60)
        j.sync(60)
        j.close()
        j = small(store.power_cycle())
        self.assertEqual(j.age_base_s, 60)
        self.assertEqual(len(j.scan(1, None, 8, 49)), 7)
        self.assertEqual(len(j.scan(1, None, 8, 50)), 4)
        self.assertEqual(j.drops, {3: 3})
        self.assertEqual(j.gone(), [(1, 3)])
        self.assertEqual(j.stats(50)["oldest_s"], 90)


class TestQuarantine(unittest.TestCase):
    def test_refused_records_are_kept_listed_and_out_of_the_way(self):
        store = SimFlash(1)
        j = small(store)
        sent = fill(j, 6)
        refs = j.scan(1)
        for i in (4, 1):
            j.quarantine(refs[i], 7 + i)
        self.assertEqual([r.seq for r in j.scan(1)], [1, 3, 4, 6])
        j = small(store.power_cycle())
        listed = j.quarantined()
        self.assertEqual([(r.seq, reason) for r, reason in listed], [(5, 11), (2, 8)])
        self.assertEqual(j.read(listed[0][0]), sent[5])
        self.assertEqual(j.stats()["quarantined"], 2)
        self.assertEqual(j.clear_quarantine(), 2)
        self.assertEqual(j.quarantined(), [])
        self.assertEqual(j.drops, {7: 2})

    def test_it_is_bounded(self):
        j = small(SimFlash(1))
        fill(j, 60)
        for _ in range(60):
            j.quarantine(j.scan(1, None, 1)[0], 1)
        kept = len(j.quarantined(100))
        self.assertLess(kept, 30)
        self.assertEqual(j.drops, {7: 60 - kept})
        self.assertEqual(j.stats()["segments"][3], 2)
        self.assertEqual(j.gone(), [])

    def test_once_is_enough(self):
        store = SimFlash(1)
        j = small(store)
        fill(j, 3)
        ref = j.scan(1)[0]
        image = store.clone()
        j.quarantine(ref, 1)
        image.files[segment_name(3, 1)] = store.files[segment_name(3, 1)]
        j.quarantine(ref, 1)
        self.assertEqual(len(j.quarantined()), 1)
        # The power went between the copy and the free: it is refused once more.
        j = small(image.power_cycle())
        j.quarantine(j.scan(1)[0], 1)
        self.assertEqual(len(j.quarantined()), 1)


class TestGone(unittest.TestCase):
    def test_too_many_ranges_are_joined_where_they_are_near(self):
        state = State()
        for first in (1, 100, 200, 203, 300, 400, 500, 600, 700):
            state.drop(3, 1, first, first)
        self.assertEqual(len(state.gone), 8)
        self.assertIn((200, 203), state.gone)
        self.assertEqual((state.gone[0], state.gone[-1]), ((1, 1), (700, 700)))

    def test_ranges_far_apart_are_forgotten_oldest_first(self):
        state = State()
        for first in range(10000, 100000, 10000):
            state.drop(1, 5, first, first + 9)
        self.assertEqual(len(state.gone), 8)
        self.assertEqual(state.gone[0], (20000, 20009))
        self.assertEqual(state.drops[1], 45)


class TestStart(unittest.TestCase):
    def test_nothing_is_listed_and_little_is_read(self):
        reads = []
        for count in (20, 100, 400):
            store = SimFlash(1)
            j = small(store, 1, max_segments=200)
            fill(j, count)
            after = store.power_cycle()
            small(after, 1, max_segments=200)
            self.assertEqual(after.listed, 0)
            reads.append(after.reads)
        self.assertLessEqual(max(reads), 8)

    def test_no_number_is_used_again_when_its_segment_was_let_go_on_a_full_disk(self):
        """The state is from before the records; their segment was emptied to make room for
        the next one, and then the power went."""
        for more in (0, 3):
            store = SimFlash(1)
            j = small(store)
            fill(j, more)
            if more:
                j.save()
            fill(j, 5)
            before = j.next_seq
            j.free(j.journal_id, [(1, before - 1)])
            name = segment_name(1, 1)
            store.rename(name, left_name(name, False))
            store.sync_names()
            after = small(store.power_cycle())
            self.assertGreaterEqual(after.next_seq, before)
            self.assertNotEqual(after.journal_id, j.journal_id)
            self.assertEqual(frames(after), {})

    def test_no_number_is_used_again_that_went_before_a_lower_one_was_durable(self):
        """The urgent record of a batch reached a full disk, the other one did not; the
        urgent one was delivered and its segment removed; then the power went."""
        store = SimFlash(1)
        j = small(store)
        fill(j, 2)
        j.append(3, b"normal", 1)
        j.append(4, b"urgent", 0)
        sync = store.sync

        def full(name):
            if name[:2] == "1-":
                raise StoreError("no space left", name, "", ENOSPC)
            sync(name)

        store.sync = full
        with self.assertRaises(StoreError):
            j.sync()
        j.free(j.journal_id, [(4, 4)])
        store.sync = sync
        j._log._make_room(0, [])
        j.save()
        after = small(store.power_cycle())
        self.assertGreaterEqual(after.next_seq, 5)

    def test_a_torn_tail_ends_its_segment(self):
        store = SimFlash(1)
        j = small(store)
        sent = fill(j, 5)
        name = segment_name(1, 1)
        store.append(name, b"\x00\x32" + bytes(range(40)))
        store.sync(name)
        j = small(store)
        self.assertEqual(frames(j), sent)
        self.assertEqual(j.stats()["torn"], 1)
        self.assertGreater(j.next_seq, 6)
        self.assertEqual((list(j.drops), j.gone()[0][0]), ([0], 6))
        sent.update(fill(j, 3))
        self.assertEqual(frames(small(store.power_cycle())), sent)
        self.assertEqual(store.size(segment_name(1, 2)) > 0, True)

    def test_one_bad_slot(self):
        for slot in SLOTS:
            store = SimFlash(1)
            j = small(store)
            sent = fill(j, 30)
            j.save()
            store.flip(slot, 20)
            store.listed = 0
            again = small(store, 5)
            self.assertEqual(frames(again), sent)
            self.assertNotEqual(again.journal_id, j.journal_id)
            self.assertGreater(again.next_seq, 1000)
            self.assertEqual(store.listed, 0)

    def test_both_slots_bad(self):
        store = SimFlash(1)
        j = small(store)
        j.down_counter = 99
        sent = fill(j, 60)
        j.free(j.journal_id, [(1, 25)])
        for slot in SLOTS:
            store.flip(slot, 20)
        again = small(store, 5)
        left = frames(again)
        for seq in range(26, 61):
            self.assertEqual(left[seq], sent[seq])
        self.assertNotEqual(again.journal_id, j.journal_id)
        self.assertGreater(again.next_seq, 1000)
        self.assertGreater(again.boot, 1)
        self.assertEqual(again.down_counter, 99)
        self.assertEqual(again.stats()["lost_states"], 1)
        self.assertEqual([h[0] for h in again.held()], [again.journal_id, j.journal_id])
        again.free(j.journal_id, [(1, 60)])
        self.assertEqual(frames(again), {})

    def test_losing_the_newest_state_repeats_no_identity(self):
        for rounds in range(1, 12):
            store = SimFlash(1)
            j = small(store)
            used = set()
            for i in range(rounds):
                for seq in fill(j, 7, 40, i % 3):
                    used.add((j.journal_id, seq))
                if i % 2:
                    j.free(j.journal_id, [(1, j.next_seq - 3)])
            there = frames(j)
            states = [(decode(bytes(store.files[n].data)).generation, n) for n in SLOTS]
            store.flip(max(states)[1], 40)
            again = small(store, 5)
            after = contents(again)
            for key in after:
                self.assertIn(key, used)
            for seq in there:
                self.assertIn((j.journal_id, seq), after)
            self.assertNotEqual(again.journal_id, j.journal_id)
            self.assertGreaterEqual(again.next_seq, j.next_seq)

    def test_losing_the_state_that_let_a_segment_go(self):
        # Seqs 1 to 8 are known from nothing but the state that rots.
        for at in range(1, 7):
            store = SimFlash(at)
            j = small(store)
            fill(j, 8, 100, 1, 1)
            j.free(j.journal_id, [(1, 8)])
            j.append(9, bytes(100))
            store.cut_at = at
            try:
                j.sync()
            except PowerCut:
                pass
            store = store.power_cycle()
            states = {}
            for slot in SLOTS:
                state = decode(store.read(slot, 0, 1 << 16))
                if state is not None:
                    states[state.generation] = slot
            store.flip(states[max(states)], 40)
            again = small(store, 5)
            self.assertGreater(again.next_seq, 8)
            self.assertNotEqual(again.journal_id, j.journal_id)

    def test_losing_both_states_does_not_revive_a_replaced_record(self):
        tried = 0
        for seed in range(12):
            store = SimFlash(seed, 1)
            j = small(store, 1, segment_bytes=8192)
            fill(j, 10, 200)
            for _ in range(20):
                j.append(j.next_seq, b"A" * 200)
            with self.assertRaises(StoreError):
                j.sync()
            head = j._s.chains[1][0]
            landed = [r.seq for r in walk(store, head, head.length, 8192) if r is not None]
            if not landed:
                continue
            tried += 1
            j.append(landed[-1], b"B" * 200)
            store.capacity = 0
            j.sync()
            for slot in SLOTS:
                store.flip(slot, 9)
            there = frames(small(store, 7, segment_bytes=8192))
            self.assertTrue(there[landed[-1]] == b"B" * 200)
        self.assertGreater(tried, 3)

    def test_no_slot_at_all(self):
        store = SimFlash(1)
        j = small(store)
        sent = fill(j, 20)
        for slot in SLOTS:
            store.remove(slot)
        again = small(store, 5)
        self.assertEqual(frames(again), sent)
        self.assertNotEqual(again.journal_id, j.journal_id)

    def test_a_wiped_store_gets_another_id(self):
        a = small(SimFlash(1), 1)
        b = small(SimFlash(1), 2)
        self.assertNotEqual(a.journal_id, b.journal_id)
        self.assertEqual((b.next_seq, b.boot), (1, 1))

    def test_another_format_is_left_alone(self):
        store = SimFlash(1)
        j = small(store)
        fill(j, 3)
        j.save()
        for slot in SLOTS:
            data = bytearray(store.files[slot].data)
            data[4] += 1
            from binascii import crc32

            data[-4:] = crc32(data[:-4]).to_bytes(4, "big")
            store.files[slot].data = data
        before = store.changes
        with self.assertRaises(JournalError) as caught:
            small(store)
        self.assertIn("Install the edge-agent that wrote it", str(caught.exception))
        self.assertEqual(store.changes, before)

    def test_the_state_survives_its_own_encoding(self):
        store = SimFlash(1)
        j = small(store)
        fill(j, 60)
        j.free(j.journal_id, [(1, 3), (7, 7), (30, 33)])
        state = j._s
        again = decode(state.encode())
        self.assertEqual(again.encode(), state.encode())
        # The largest state there can be still fits.
        big = State()
        for i in range(240 if STEP == 1 else 64):  # boards have 64 at most
            segment = Segment(1, i + 1, i.to_bytes(4, "big"))
            segment.count = 100
            segment.freed = list(range(0, 640, 10))
            big.chains[1].append(segment)
            big.removing.append((segment.name, "bad-%d" % i))
        self.assertLess(len(big.encode()), MAX_STATE)
        self.assertEqual(len(decode(big.encode()).chains[1]), len(big.chains[1]))
        data = state.encode()
        for cut in range(len(data)):
            self.assertIsNone(decode(data[:cut]))


class TestDamage(unittest.TestCase):
    def test_damage_in_the_middle_loses_one_record_and_says_so(self):
        store = SimFlash(1)
        j = small(store)
        sent = fill(j, 30)
        ref = j.scan(1, None, 6)[5]
        store.flip(segment_name(1, ref.segment), ref.offset + RECORD_BYTES + 3)
        with self.assertRaises(JournalError):
            j.read(ref)
        del sent[ref.seq]
        self.assertEqual(frames(j), sent)
        self.assertEqual(j.drops, {5: 1})
        self.assertEqual(j.gone(), [(ref.seq, ref.seq)])
        self.assertEqual(j.stats()["corrupt"], 1)
        self.assertTrue(j.doubt)
        j.save()
        again = small(store.power_cycle(), 5)
        self.assertEqual(frames(again), sent)
        self.assertNotEqual(again.journal_id, j.journal_id)
        again.free(j.journal_id, [(1, 30)])
        self.assertIn("bad-1", store.power_cycle().names() + again._store.names())

    def test_damaged_files_are_kept_but_not_many(self):
        store = SimFlash(1)
        j = small(store)
        for _ in range(5):
            fill(j, 30)
            refs = j.scan(1, None, 1)
            store.flip(segment_name(1, refs[0].segment), refs[0].offset + RECORD_BYTES)
            with self.assertRaises(JournalError):
                j.read(refs[0])
            j.free(j.journal_id, [(1, j.next_seq - 1)])
        bad = [n for n in store.names() if n.startswith("bad-")]
        self.assertEqual(len(bad), 2)
        self.assertEqual(j.stats()["corrupt"], 5)

    def test_a_missing_segment_is_counted(self):
        store = SimFlash(1)
        j = small(store)
        sent = fill(j, 40)
        lost = [r.seq for r in j.scan(1, None, 40) if r.segment == 2]
        j.save()
        store.remove(segment_name(1, 2))
        j = small(store)
        for seq in lost:
            del sent[seq]
        self.assertEqual(frames(j), sent)
        self.assertEqual(j.drops, {6: len(lost)})
        self.assertEqual(j.gone(), [(lost[0], lost[-1])])

    def test_a_flip_of_any_byte_is_never_silent(self):
        bench = Workbench(SimFlash(3), 3)
        bench.open()
        for i in range(12):
            bench.append(i % 3, 30)
            if i % 2:
                bench.sync()
        bench.free([(2, 4)])
        bench.quarantine()
        bench.journal.save()
        for _ in range(4):
            bench.append(1, 30)
            bench.sync()
        image = bench.store.power_cycle()
        for name in sorted(image.names()):
            for offset in range(0, image.size(name), STEP):
                store = image.clone()
                store.flip(name, offset, 1 << (offset & 7))
                j = small(store, 8)
                now = contents(j)
                for key in now:
                    self.assertEqual(now[key], bench.durable[key])
                missing = len(bench.held - set(now))
                stats = j.stats()
                if missing:
                    told = sum([j.drops.get(r, 0) for r in (5, 6)])
                    self.assertTrue(told >= missing or stats["torn"], (name, offset))
                self.assertGreater(j.next_seq, 16)
                fill(j, 1)

    def test_a_sector_that_cannot_be_read_is_damage_not_failure(self):
        class Worn(SimFlash):
            bad = 1 << 30

            def read(self, name, offset, length):
                if name == segment_name(1, 1) and offset <= self.bad < offset + length:
                    raise StoreError("input/output error", name, "", 5)
                return SimFlash.read(self, name, offset, length)

        store = Worn(1)
        j = small(store)
        sent = fill(j, 60)
        ref = j.scan(1, None, 4)[3]
        store.bad = ref.offset + 30
        with self.assertRaises(JournalError):
            j.read(ref)
        left = frames(j)
        told = sum([j.drops.get(r, 0) for r in (5, 6)])
        self.assertEqual(len(left) + told, 60)
        for seq in left:
            self.assertEqual(left[seq], sent[seq])
        self.assertGreater(len(left), 40)

    def test_a_file_cut_short_is_noticed(self):
        store = SimFlash(1)
        j = small(store)
        sent = fill(j, 8)
        j.save()
        f = store.files[segment_name(1, 1)]
        f.data = f.data[:-30]
        f.synced = len(f.data)
        again = small(store, 5)
        del sent[8]
        self.assertEqual(frames(again), sent)
        self.assertEqual(again.drops, {5: 1})
        self.assertNotEqual(again.journal_id, j.journal_id)


class TestFullDisk(unittest.TestCase):
    def test_the_batch_waits_and_nothing_is_lost(self):
        store = SimFlash(1, 12)
        j = small(store, 1, segment_bytes=4096, max_segments=30)
        sent = {}
        failed = 0
        for _ in range(400):
            seq = j.next_seq
            try:
                j.append(seq, bytes([seq & 255]) * 200)
            except JournalFull:
                break
            sent[seq] = bytes([seq & 255]) * 200
            try:
                j.sync()
            except StoreError as error:
                self.assertEqual(error.code, ENOSPC)
                failed += 1
        self.assertEqual(failed, MAX_BATCH)
        there = frames(j)
        self.assertEqual(len(there) + MAX_BATCH, len(sent))
        # A restart on the full disk still gives what it holds.
        again = small(store.clone().power_cycle(), 5, segment_bytes=4096, max_segments=30)
        kept = frames(again)
        for seq in there:
            self.assertEqual(kept[seq], sent[seq])
        # Frees make room, and the batch gets through.
        j.free(j.journal_id, [(1, 100)])
        self.assertEqual(len(j.sync()), MAX_BATCH)
        for seq in range(1, 101):
            del sent[seq]
        self.assertTrue(frames(j) == sent)
        after = small(store.power_cycle(), 5, segment_bytes=4096, max_segments=30)
        self.assertTrue(frames(after) == sent)
        self.assertEqual(after.drops, {2: 1})

    def test_a_restart_on_a_full_disk_can_deliver(self):
        store = SimFlash(1, 12)
        j = small(store, 1, segment_bytes=4096, max_segments=30)
        with self.assertRaises(StoreError):
            fill(j, 400, 200)
        there = frames(j)
        store = store.power_cycle()
        store.capacity = 1
        j = small(store, 5, segment_bytes=4096, max_segments=30)
        self.assertTrue(frames(j) == there)
        seq = j.next_seq
        j.append(seq, b"waits")
        with self.assertRaises(StoreError):
            j.sync()
        store.capacity = 12
        last = max(there)
        j.free(j.journal_id, [(1, last)])
        for journal, _, _ in j.held():
            j.free(journal, [(1, last)])
        self.assertEqual(len(j.sync()), 1)
        self.assertEqual(frames(j), {seq: b"waits"})

    def test_a_replacement_after_a_failed_write_never_makes_two_of_a_seq(self):
        for seed in range(40):
            store = SimFlash(seed, 2)
            j = small(store, 1, segment_bytes=8192)
            fill(j, 10, 200)
            for _ in range(40):
                j.append(j.next_seq, b"A" * 200)
            seq = j.next_seq - 1
            with self.assertRaises(StoreError):
                j.sync()
            try:
                j.append(seq, b"B" * 90)
            except JournalError:
                continue  # that one had landed
            cut = small(store.clone().power_cycle(seed), 7, segment_bytes=8192)
            self.assertIn(frames(cut).get(seq), (None, b"A" * 200))
            store.capacity = 0
            j.sync()
            after = store.power_cycle(seed)
            self.assertEqual(frames(small(after, 7, segment_bytes=8192))[seq], b"B" * 90)


if __name__ == "__main__":
    unittest.main()
