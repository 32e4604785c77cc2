import unittest

from rig import AGENT, CRYPTO, KEY, Gateway, RamStore, Rig, make_config

from edge_agent import frame
from edge_agent.egress import Egress
from edge_agent.errors import LocalError, StoreError
from edge_agent.twoslot import TwoSlot


class TestTwoSlot(unittest.TestCase):
    def test_new_or_old_whatever_is_torn(self):
        store = RamStore()
        slot = TwoSlot(store, "x")
        self.assertIsNone(slot.load())
        for i in range(5):
            slot.save(b"content %d" % i)
        for cut in range(20):
            torn = store.copy()
            newest = "x1" if torn.files["x1"][3] > torn.files["x0"][3] else "x0"
            torn.files[newest] = torn.files[newest][:cut]
            whole = cut >= 17
            self.assertEqual(TwoSlot(torn, "x").load(), b"content 4" if whole else b"content 3")
            again = TwoSlot(torn, "x")
            again.load()
            again.save(b"after")
            self.assertEqual(TwoSlot(torn, "x").load(), b"after")
        for i in range(17):
            flipped = store.copy()
            for name in ("x0", "x1"):
                flipped.files[name][i] ^= 1
            self.assertIsNone(TwoSlot(flipped, "x").load())

    def test_erased_flash_is_no_content(self):
        store = RamStore()
        TwoSlot(store, "x").save(b"one")
        for size in range(40):
            for fill in (b"\xff", b"\x00"):
                store.files["x0"] = bytearray(fill * size)
                slot = TwoSlot(store, "x")
                self.assertEqual(slot.load(), b"one")
                slot.save(b"one")
                self.assertEqual(TwoSlot(store, "x").load(), b"one")

    def test_failed_save_leaves_the_old(self):
        store = RamStore()
        slot = TwoSlot(store, "x")
        slot.save(b"one")
        store.error = StoreError("full", "x", "", 28)
        with self.assertRaises(StoreError):
            slot.save(b"two")
        store.error = None
        self.assertEqual(TwoSlot(store, "x").load(), b"one")


class TestEgress(unittest.TestCase):
    def setUp(self):
        self.store = RamStore()
        self.keys = frame.DeviceKeys(CRYPTO, AGENT, KEY, 0)
        self.egress = Egress(self.store, self.keys)

    def test_every_kind_is_known_by_its_bytes(self):
        for encrypt in (False, True):
            r, g = Rig(config=make_config(encrypt=encrypt), ledger=True), Gateway()
            r.start()
            r.up()
            hello = next(p.payload for p in r.sent if p.kind == "hello")
            r.serve(g)
            r.window()
            self.assertEqual(self.egress.check(hello), "hello")
            self.assertEqual(self.egress.check(r.committed[0][2]), "outcome")
        self.assertEqual(self.egress.check(b"online"), "state")
        self.assertEqual(self.egress.check(b"offline"), "state")
        self.assertEqual(self.egress.totals["state"], [2, 13])
        self.assertEqual(self.egress.totals["hello"][0], 2)

    def test_records_of_an_older_key_generation_are_known(self):
        r = Rig(config=make_config(), ledger=True)
        r.window()
        rotated = Egress(RamStore(), frame.DeviceKeys(CRYPTO, AGENT, bytes(32), 1))
        self.assertEqual(rotated.check(r.committed[0][2]), "outcome")

    def test_anything_else_is_refused(self):
        g = Gateway()
        other = Rig(config=make_config(agent="ff" * 8), ledger=True)
        other.window()
        for payload in (b"", b"ONLINE", b"secret", bytes(600), g.box(1, b"x"), b"\xd1\x84\x52"):
            with self.assertRaises(LocalError):
                self.egress.check(payload)
        with self.assertRaises(LocalError):
            self.egress.check(other.committed[0][2])
        self.assertEqual(sum(self.egress.totals[k][0] for k in self.egress.totals), 0)

    def test_totals_are_saved_rarely_and_come_back(self):
        for _ in range(10):
            self.egress.check(b"online")
        self.assertFalse(self.egress.due(1000))
        self.assertTrue(self.egress.due(600000))
        self.egress.save(600000)
        self.assertFalse(self.egress.due(9999999))
        writes = self.store.writes
        self.egress.save(600001)
        self.assertEqual(self.store.writes, writes, "nothing new: nothing written")
        self.assertEqual(Egress(self.store).totals["state"], [10, 60])
        for _ in range(1024):
            self.egress.check(b"online")
        self.assertTrue(self.egress.due(600002))

    def test_a_damaged_account_starts_again(self):
        self.egress.check(b"online")
        self.egress.save(0)
        for name in ("egress0", "egress1"):
            if name in self.store.files:
                self.store.files[name][-1] ^= 1
        self.assertEqual(Egress(self.store).totals["state"], [0, 0])
