"""A journal that opens: what a cut, a lost state or another format makes of it."""

import sys
import unittest

from journal_kit import fill, frames, small
from journal_model import contents
from sim_flash import ENOSPC, PowerCut, SimFlash

from edge_agent.errors import JournalError, StoreError
from edge_agent.journal_state import MAX_STATE, SLOTS, State, decode
from edge_agent.segment import Segment, left_name, segment_name, walk

STEP = 7 if sys.implementation.name == "micropython" else 1


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


if __name__ == "__main__":
    unittest.main()
