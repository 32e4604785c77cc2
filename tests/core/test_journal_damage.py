"""A journal whose flash is damaged, worn or full."""

import sys
import unittest

from journal_kit import fill, frames, small
from journal_model import Workbench, contents
from sim_flash import ENOSPC, SimFlash

from edge_agent.errors import JournalError, JournalFull, StoreError
from edge_agent.journal import MAX_BATCH
from edge_agent.segment import RECORD_BYTES, segment_name

STEP = 7 if sys.implementation.name == "micropython" else 1


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
