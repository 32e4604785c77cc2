"""Clones and restored images: two devices with one past lose nothing."""

import unittest

from delivery_kit import config, counters
from rig import Gateway, RamStore, Rig

from edge_agent.connection import CONNECTING, UP, WAITING


class TestTwins(unittest.TestCase):
    def test_conflict_makes_a_new_journal_id(self):
        r, g = Rig(config=config()), Gateway()
        r.start()
        r.up()
        r.serve(g)
        old = r.journal.journal_id
        g.held[(old, 2)] = b"the bytes of a twin"
        for _ in range(3):
            r.window()
        r.serve(g)
        self.assertNotEqual(r.journal.journal_id, old)
        self.assertEqual(len(r.named("cloned-or-restored")), 1)
        r.window()
        r.serve(g)
        self.assertTrue((r.journal.journal_id, 4) in g.held)
        self.assertEqual(len(g.conflicts), 1)
        self.assertEqual(len(r.journal.quarantined()), 1)
        self.assertEqual({h.journal for h in g.hellos}, {old, r.journal.journal_id})
        self.assertTrue(r.core.drained())

    def test_ack_for_numbers_never_given_out_makes_a_new_journal_id(self):
        r, g = Rig(config=config()), Gateway()
        r.start()
        r.up()
        r.serve(g)
        old = r.journal.journal_id
        r.window()
        r.message("ack", g.ack(old, [(1, 9)]))
        self.assertEqual(counters(r)["ack-never-sent"], 1)
        self.assertNotEqual(r.journal.journal_id, old)
        r.serve(g)
        for _ in range(3):
            r.window()
        r.serve(g)
        self.assertEqual(r.core.intake.next_seq, 5)
        self.assertEqual(len(r.named("new-journal-id")), 1)

    def test_a_restored_image_loses_nothing(self):
        store, g = RamStore(), Gateway()
        r = Rig(store, config())
        r.start()
        r.up()
        for _ in range(5):
            r.window()
        r.serve(g)
        image = store.copy()
        for _ in range(6):
            r.window(2)
        r.serve(g)
        self.assertEqual(len(g.held), 11)
        # The image comes back to life, works offline, boots again, then connects.
        made = []
        r = Rig(image, config(), seed=7, ledger=True)
        for _ in range(4):
            r.window(0)
        made += r.committed
        r = Rig(image, config(), seed=8, ledger=True, now=1000)
        r.start()
        for _ in range(3):
            r.window(1)
        made += r.committed
        for _ in range(50):
            if r.core.delivery.link.state == WAITING:
                r.run(1000)
            if r.core.delivery.link.state == CONNECTING:
                r.up()
            r.serve(g)
            r.run(1000)
        self.assertEqual(len(made), 7)
        known = [bytes(f) for f in g.held.values()] + [bytes(f) for f in g.conflicts]
        for _, seq, data in made:
            self.assertTrue(data in known, seq)
        self.assertTrue(g.conflicts, "numbers were used twice, or the test shows nothing")
        self.assertTrue(r.core.drained())

    def test_two_clones_lose_nothing(self):
        store, g = RamStore(), Gateway()
        Rig(store, config())
        a = Rig(store.copy(), config(), seed=2, ledger=True)
        b = Rig(store.copy(), config(), seed=3, ledger=True, now=500)
        a.start()
        b.start()
        for turn in range(60):
            now, other = (a, b) if turn % 2 else (b, a)
            if other.core.delivery.link.state == UP:
                other.down("broker")  # the broker lets in one client of that name
            now.run(5000 if turn < 40 else 130000)
            if now.core.delivery.link.state == CONNECTING:
                now.up()
            if turn < 40:
                now.window(turn % 3)
                now.window((turn + 1) % 3)
            now.serve(g)
        known = [bytes(f) for f in g.held.values()] + [bytes(f) for f in g.conflicts]
        for r in (a, b):
            self.assertTrue(r.core.drained())
            for _, seq, data in r.committed:
                self.assertTrue(data in known, seq)
        self.assertEqual(len(a.committed) + len(b.committed), 80)
        self.assertNotEqual(a.journal.journal_id, b.journal.journal_id)
