"""When there is a link: pauses before the next try, turns of a duty cycle, the table."""

import unittest

from delivery_kit import config
from rig import Gateway, RamStore, Rand, Rig

from edge_agent.backoff import LADDERS, Backoff
from edge_agent.connection import (
    CLOSING,
    CONNECTING,
    IDLE,
    LINGER_MS,
    TABLE,
    UP,
    WAITING,
    Connection,
)
from edge_agent.errors import LinkError


class TestBackoff(unittest.TestCase):
    def test_ladders_are_apart_and_capped_and_jittered(self):
        b = Backoff(lambda n: n - 1)
        radio = [b.pause_ms("radio") for _ in range(12)]
        self.assertEqual(radio[:4], [1000, 2000, 4000, 8000])
        self.assertEqual(radio[-1], LADDERS["radio"][1])
        self.assertEqual(b.pause_ms("broker"), 1000)
        self.assertEqual(b.pause_ms("timeout"), 2000)
        self.assertEqual(b.pause_ms("refused"), 15000)
        b.connected()
        self.assertEqual(b.pause_ms("radio"), 1000)
        self.assertEqual(b.pause_ms("broker"), 4000)
        b.stood()
        self.assertEqual(b.pause_ms("broker"), 1000)
        low = Backoff(lambda n: 0)
        self.assertEqual(low.pause_ms("radio"), 500)

    def test_a_link_that_drops_at_once_is_not_hammered(self):
        r = Rig(config=config())
        r.start()
        for _ in range(200):
            r.run(1000)
            if r.core.delivery.link.state == CONNECTING:
                r.up()
                r.down("broker")
        self.assertLess(r.connects, 12)

    def test_a_fleet_does_not_return_all_at_once(self):
        pauses = set()
        for seed in range(20):
            r = Rig(config=config(), seed=seed)
            r.start()
            for _ in range(4):
                r.do(r.core.on_link(False, False, "broker", r.now))
                r.run(60000)
            pauses.add(r.named("link-down")[3].fields["retry_ms"])
        self.assertGreater(len(pauses), 15)


class TestDutyCycle(unittest.TestCase):
    def cycle(self, r, g):
        """Serve the link until the core lets go of it; how long that took."""
        start = r.now
        while r.core.delivery.link.state in (UP, CLOSING):
            r.serve(g)
            if r.disconnects:
                r.disconnects = []
                r.down("closed")
                break
            r.run(100)
            self.assertLess(r.now - start, 200000)
        return r.now - start

    def test_connects_every_so_often_and_rests_when_done(self):
        r, g = Rig(config=config({"duty_s": 600})), Gateway()
        r.start()
        r.up()
        took = self.cycle(r, g)
        self.assertLess(took, LINGER_MS + 1000)
        for _ in range(5):
            r.window()
        r.run(520000)
        self.assertEqual(r.connects, 1)
        r.run(90000)
        self.assertEqual(r.connects, 2)
        r.up()
        self.cycle(r, g)
        self.assertEqual(len(g.held), 5)
        r.run(3600000)
        self.assertEqual(r.connects, 3, "the third connect is under way")

    def test_two_that_begin_together_do_not_meet_for_ever(self):
        turns = []
        for seed in (3, 4):
            r = Rig(config=config({"duty_s": 600}), seed=seed)
            r.start()
            r.up()
            self.cycle(r, Gateway())
            while r.connects < 2:
                r.run(1000)
            turns.append(r.now)
        self.assertTrue(abs(turns[0] - turns[1]) > LINGER_MS, turns)

    def test_an_urgent_record_does_not_wait(self):
        r, g = Rig(config=config({"duty_s": 3600}, priorities={"run": 0})), Gateway()
        r.start()
        r.up()
        self.cycle(r, g)
        r.window(1)
        self.assertEqual(r.connects, 1)
        r.window(2)
        self.assertEqual(r.connects, 2)
        r.up()
        self.cycle(r, g)
        self.assertEqual(len(g.held), 2)

    def test_the_cap_ends_a_visit_without_answer(self):
        settings = {"duty_s": 600, "duty_cap_s": 30}
        r = Rig(config=config(settings, priorities={"run": 0}))
        r.window(2)
        r.start()
        r.up()
        while not r.disconnects:
            for p in list(r.sent):
                r.puback(p)
            r.run(1000)
            self.assertLess(r.now, 60000)
        self.assertLess(29000, r.now)
        r.down("closed")
        r.run(500000)
        self.assertEqual(r.connects, 1, "not again before its turn")
        r.run(100000)
        self.assertEqual(r.connects, 2)

    def test_a_boot_after_resting_repeats_nothing(self):
        store, g = RamStore(), Gateway()
        r = Rig(store, config({"duty_s": 600}))
        for _ in range(5):
            r.window()
        r.start()
        r.up()
        self.cycle(r, g)
        r = Rig(store, config({"duty_s": 600}), seed=5)
        r.start()
        r.up()
        self.cycle(r, g)
        self.assertEqual((len(g.held), g.duplicates), (5, 0))


class TestLink(unittest.TestCase):
    def test_every_row_of_the_table(self):
        for state, event in TABLE:
            c = Connection(config(), Rand().bytes)
            c.state = state
            self.assertTrue(c.can(event))
            c.go(event)
            self.assertIn(c.state, (IDLE, WAITING, CONNECTING, UP, CLOSING))
        c = Connection(config(), Rand().bytes)
        self.assertFalse(c.can("up"))
        with self.assertRaises(KeyError):
            c.go("up")

    def test_stop_says_offline_and_stays_away(self):
        r, g = Rig(config=config()), Gateway()
        r.start()
        r.up()
        r.serve(g)
        r.do(r.core.stop(r.now))
        self.assertEqual([p.payload for p in r.sent], [b"offline"])
        r.serve(g)
        self.assertEqual(r.disconnects, ["closed"])
        r.down("closed")
        self.assertEqual(r.core.delivery.link.state, IDLE)
        self.assertIsNone(r.core.next_wake())
        r.run(3600000)
        self.assertEqual(r.connects, 1)

    def test_stop_in_every_state(self):
        for steps in ("", "s", "su", "sud"):
            r = Rig(config=config())
            if "s" in steps:
                r.start()
            if "u" in steps:
                r.up()
            if "d" in steps:
                r.down()
            r.do(r.core.stop(r.now))
            r.run(10000)
            if r.disconnects:
                r.down("closed")
            self.assertEqual(r.core.delivery.link.state, IDLE, steps)

    def test_answers_that_come_late_are_ignored(self):
        r = Rig(config=config())
        r.start()
        r.up()
        stale = list(r.sent)
        r.down()
        for p in stale:
            self.assertEqual(r.core.on_done(p.id, None, r.now), [])
            self.assertEqual(r.core.on_error(p.id, LinkError("network"), r.now), [])
        self.assertEqual(r.core.on_link(False, False, "broker", r.now), [])
        self.assertEqual(r.core.on_done(99999, None, r.now), [])

    def test_thirty_days_offline(self):
        r, g = Rig(config=config({"pace_per_s": 1000})), Gateway()
        r.start()
        for day in range(30):
            for _ in range(4):
                r.window(day % 3)
            end = r.now + 86400000
            while r.now < end:
                r.run(21600000)
                r.do(r.core.on_link(False, False, "radio", r.now))
        r.run(120000)
        r.up()
        for _ in range(60):
            r.serve(g)
            r.run(1000)
        self.assertEqual((len(g.held), g.duplicates), (120, 0))
        self.assertTrue(r.core.drained())
