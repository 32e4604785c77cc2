"""A journal at work: append, read, free, give way, set aside."""

import unittest

from journal_kit import fill, frames, small
from sim_flash import SimFlash

from edge_agent.errors import ConfigError, JournalError, JournalFull
from edge_agent.journal import MAX_BATCH
from edge_agent.journal_state import State
from edge_agent.segment import segment_name


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


if __name__ == "__main__":
    unittest.main()
