"""The mailbox on the whole agent: taken, written, reported, used to decide."""

import unittest

from mail_kit import DISK_FULL, near, row, settings, sure_head
from rig import Gateway, Rig, make_config
from sim_flash import PowerCut, SimFlash

from edge_agent import frame
from edge_agent.agent import MAIL_MAX
from edge_agent.connection import UP
from edge_agent.mail import CLEAR, CLEAR_HEAD, NEIGHBOUR, ROW, SAVE_MS, STATE_MAX, encode_clear


class OnTheAgent(unittest.TestCase):
    """AgentCore with peers, on a journal and a gateway."""

    def linked(self, store=None, **more):
        r, g = Rig(store, settings(**more)), Gateway()
        r.start()
        r.up()
        r.serve(g)
        return r, g

    def post(self, r, g, *boxes):
        """Number boxes on from where the device is known to be."""
        number = g.hellos[-1].taken
        for kind, body in boxes:
            number += 1
            r.message("box", g.box(kind, body, number))

    def outcome(self, r, g, label=1):
        r.window(label)
        r.serve(g)
        held = [g.held[key] for key in sorted(g.held)]
        opened = frame.open_frame(held[-1], frame.Keyring(g.keys), frame.UP)
        return opened.message.outcome

    def test_without_peers_nothing_is_said_or_taken(self):
        r, g = Rig(config=make_config(sensor={"kind": "x", "stall_s": 0})), Gateway()
        r.start()
        r.up()
        r.serve(g)
        self.assertEqual((g.hellos[-1].taken, g.hellos[-1].head), (None, None))
        r.message("box", g.box(NEIGHBOUR, near(1), 1))
        self.assertEqual(r.handled, [(NEIGHBOUR, near(1))])
        self.assertFalse("mail" in r.core.status())

    def test_the_agent_has_room_for_the_whole_state(self):
        """The agent has a figure of its own: mail is not loaded where it is not used."""
        self.assertEqual(MAIL_MAX, STATE_MAX)

    def test_taken_written_reported(self):
        r, g = self.linked()
        self.assertEqual((g.hellos[-1].taken, g.hellos[-1].head), (0, None))
        hellos = len(g.hellos)
        self.post(r, g, *[(ROW, body) for body in sure_head(5, 2)])
        r.serve(g)
        self.assertEqual(len(g.hellos), hellos)
        r.run(SAVE_MS)
        r.serve(g)
        self.assertEqual(len(g.hellos), hellos + 1)
        self.assertEqual((g.hellos[-1].taken, g.hellos[-1].head), (3, 5))
        self.assertEqual(r.core.status()["mail"]["head"], 5)
        self.assertEqual(len(r.named("head-applied")), 1)
        self.assertTrue(r.core.drained())

    def test_eight_boxes_are_reported_at_once(self):
        r, g = self.linked()
        self.post(r, g, *[(NEIGHBOUR, near(n)) for n in range(8)])
        r.serve(g)
        self.assertEqual(g.hellos[-1].taken, 8)

    def test_a_gap_makes_it_say_where_it_is(self):
        r, g = self.linked()
        r.run(5000)
        hellos = len(g.hellos)
        r.message("box", g.box(0, b"", 0xFFFFFFFF))
        r.serve(g)
        self.assertEqual((len(g.hellos), g.hellos[-1].taken), (hellos + 1, 0))
        self.assertEqual(g.hellos[-1].counter, g.counter - 1)

    def test_what_a_head_decides_and_what_the_model_had_said(self):
        r, g = self.linked()
        said = self.outcome(r, g)
        self.assertEqual((said.label, said.head, said.alone), (1, None, None))
        self.post(r, g, *[(ROW, body) for body in sure_head(5, 2)])
        said = self.outcome(r, g)
        expected = r.core.mail.head.scores(bytes(range(64)))[2]
        self.assertEqual((said.label, said.confidence), (2, expected))
        self.assertEqual((said.head, said.alone, said.parents), (5, (1, 200), ()))

    def test_what_neighbours_decide(self):
        r, g = self.linked()
        r.confidence = 90
        self.post(r, g, (NEIGHBOUR, near(1, depth=1)), (NEIGHBOUR, near(2, weight=240)))
        said = self.outcome(r, g)
        self.assertEqual((said.label, said.alone, said.head), (2, (1, 90), None))
        self.assertEqual((said.parents, said.depth), ((b"\x01" * 16, b"\x02" * 16), 2))
        self.assertTrue(said.confidence <= 250)

    def test_the_tag_unsure_is_about_the_end(self):
        r, g = self.linked()
        r.config.unsure_below = 150
        self.post(r, g, *[(ROW, body) for body in sure_head(5, 2)])
        r.confidence = 100
        self.assertEqual(self.outcome(r, g).tags, ())
        r.confidence = 200
        self.post(r, g, *[(8, b"")] * 8)
        r.serve(g)
        self.post(r, g, (CLEAR, encode_clear(CLEAR_HEAD, 5)))
        r.confidence = 100
        self.assertEqual(self.outcome(r, g).tags, (0,))

    def test_an_old_box_is_stale_even_after_a_boot(self):
        r, g = self.linked()
        old = g.box(NEIGHBOUR, near(1), 1)
        later = g.box(NEIGHBOUR, near(2), 1)
        r.message("box", later)
        r.run(SAVE_MS)
        again = Rig(r.store.copy(), settings(), seed=5)
        self.assertEqual((again.core.counter, again.core.mail.taken), (g.counter, 1))
        again.start()
        again.up()
        again.serve(g)
        again.message("box", old)
        self.assertEqual(again.core.counters["stale-box"], 1)

    def test_before_the_first_ack_nothing_is_taken(self):
        """A wiped device does not know what is old: an ack must have raised its counter."""
        r, g = self.linked()
        old = g.box(NEIGHBOUR, near(1), 1)
        wiped = Rig(config=settings(), seed=5)
        wiped.start()
        wiped.up()
        wiped.message("box", old)
        self.assertEqual((wiped.core.mail.taken, wiped.core.counters["early-box"]), (0, 1))
        wiped.serve(g)
        wiped.message("box", old)
        self.assertEqual((wiped.core.mail.taken, wiped.core.counters["stale-box"]), (0, 1))
        self.post(wiped, g, (NEIGHBOUR, near(2)))
        self.assertEqual(wiped.core.mail.taken, 1)

    def test_a_duty_cycle_waits_for_the_report(self):
        r = Rig(config=make_config(
            peers={}, sensor={"kind": "x", "stall_s": 0}, delivery={"duty_s": 600}
        ))  # fmt: skip
        g = Gateway()
        r.start()
        r.up()
        r.serve(g)
        r.run(1900)
        self.post(r, g, (NEIGHBOUR, near(1)))
        for _ in range(40):
            r.run(100)
            r.serve(g)
            if r.core.delivery.link.state != UP:
                break
        self.assertEqual((r.core.delivery.link.state == UP, g.hellos[-1].taken), (False, 1))

    def test_stopping_writes_what_was_taken(self):
        r, g = self.linked()
        self.post(r, g, (NEIGHBOUR, near(1)))
        self.assertFalse(r.core.drained())
        r.do(r.core.stop(r.now))
        self.assertEqual(Rig(r.store, settings()).core.mail.taken, 1)

    def test_what_a_hello_said_is_there_after_any_cut(self):
        """The whole agent on flash; the power goes during every change of anything."""

        def life(store, g):
            r = Rig(store, settings(), seed=store.seed)
            r.start()
            r.up()
            r.serve(g)
            for k in range(6):
                said = g.hellos[-1].taken
                boxes = [(ROW, row(said + 1, i)) for i in range(3)] + [(NEIGHBOUR, near(k))]
                self.post(r, g, *boxes)
                r.window()
                r.run(SAVE_MS)
                r.serve(g)
            return r

        whole = SimFlash(3)
        whole.seed = 3
        life(whole, Gateway())
        for at in range(1, whole.changes + 1):
            store, g = SimFlash(at), Gateway()
            store.seed = 3
            store.cut_at = at
            try:
                life(store, g)
                self.fail("no cut at %d" % at)
            except PowerCut:
                pass
            said = max([hello.taken for hello in g.hellos] or [0])
            after = store.power_cycle()
            after.seed = 4
            r = life(after, g)
            hellos = [h.taken for h in g.hellos if h.boot == r.core.boot]
            self.assertTrue(hellos[0] >= said, (at, said, hellos))
            self.assertEqual(hellos[-1], hellos[0] + 24)
            self.assertEqual(r.core.mail.head.version, g.hellos[-1].head)
        self.assertTrue(whole.changes >= 20, whole.changes)

    def test_a_full_disk_delays_the_report(self):
        r, g = self.linked()
        r.store.error = DISK_FULL
        self.post(r, g, (NEIGHBOUR, near(1)))
        r.run(60000)
        r.serve(g)
        self.assertEqual(g.hellos[-1].taken, 0)
        self.assertTrue(len(r.named("mail-not-written")) > 2)
        r.store.error = None
        r.run(60000)
        r.serve(g)
        self.assertEqual(g.hellos[-1].taken, 1)


if __name__ == "__main__":
    unittest.main()
