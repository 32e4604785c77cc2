"""A device's end of its mailbox: taken in order, written at once, reported after that."""

import unittest

from rig import Gateway, Rig, make_config
from sim_flash import PowerCut, SimFlash

from edge_agent import frame
from edge_agent.connection import UP
from edge_agent.effects import Ids, Keep
from edge_agent.errors import FrameError, StoreError
from edge_agent.frame import Box
from edge_agent.head import Row, encode_row
from edge_agent.mail import (
    ASK_MS,
    CLEAR,
    CLEAR_HEAD,
    CLEAR_NEIGHBOURS,
    NEIGHBOUR,
    ROW,
    SAVE_BOXES,
    SAVE_MS,
    STATE_MAX,
    Mail,
    decode_clear,
    encode_clear,
)
from edge_agent.synthesis import STATE_MAX as TABLE_MAX
from edge_agent.synthesis import Neighbour, encode_neighbour
from edge_agent.twoslot import TwoSlot

MODEL = b"modelid1"
LABELS = 3
DISK_FULL = StoreError("no space left", "mail0", "Free some space", 28)


def settings(**more):
    return make_config(peers=more, sensor={"kind": "x", "stall_s": 0})


def row(version, index, count=LABELS, model_id=MODEL, bias=0):
    weights = bytes([(7 * i + 11 * index + version) & 255 for i in range(64)])
    return encode_row(Row(version, model_id, index, count, weights, bias, 1 << 20, 24))


def sure_head(version, label, count=LABELS, model_id=MODEL):
    """Rows that say `label` whatever the vector is."""
    return [
        encode_row(
            Row(version, model_id, i, count, bytes(64), 1000 if i == label else 0, 1 << 10, 10)
        )
        for i in range(count)
    ]


def near(n, vector=bytes(range(64)), label=2, weight=250, depth=0):
    return encode_neighbour(Neighbour(bytes([n]) * 16, vector, label, weight, 0, depth))


def machine(data=None, labels=LABELS, **more):
    return Mail(settings(**more).peers, Ids(), data, labels)


class Post:
    """Numbers boxes for a Mail and plays the driver; `kept` is what was written last."""

    def __init__(self, mail, kept=None):
        self.mail = mail
        self.kept = kept
        self.counter = 100
        self.out = []

    def box(self, kind, body, number=None, now=0):
        self.counter += 1
        number = self.mail.taken + 1 if number is None else number
        self.do(self.mail.on_box(Box(self.counter, kind, body, number), now), now)

    def do(self, effects, now):
        for effect in effects:
            self.out.append(effect)
            if type(effect) is Keep:
                self.kept = effect.data
                self.do(self.mail.on_done(now), now)

    def names(self):
        return [effect.name for effect in self.out if type(effect) is not Keep]


class Codec(unittest.TestCase):
    def test_round_trip(self):
        for made in ((1, 0), (1, 65535), (2, 0)):
            self.assertEqual(decode_clear(encode_clear(*made)), made)

    def test_out_of_range(self):
        for made in ((0, 0), (3, 0), (True, 0), (1, -1), (1, 65536), (1, None), ("", 0)):
            with self.assertRaises(FrameError):
                encode_clear(*made)
        for body in (b"", b"\x80", b"\xa0", b"\x81\x01", b"\x82\x01\x00\x00"):
            with self.assertRaises(FrameError):
                decode_clear(body)


class Order(unittest.TestCase):
    def test_only_the_next_number_is_taken(self):
        post = Post(machine())
        mail = post.mail
        for number, taken in ((2, 0), (1, 1), (1, 1), (3, 1), (2, 2), (0xFFFFFFFF, 2), (3, 3)):
            post.box(NEIGHBOUR, near(number & 255), number)
            self.assertEqual(mail.taken, taken)
        self.assertEqual(mail.counters, {"taken": 3, "duplicates": 1, "gaps": 3})
        self.assertEqual(len(mail.neighbours), 3)

    def test_what_is_of_no_use_does_not_hold_up_the_rest(self):
        post = Post(machine())
        bodies = (
            (200, b"later"), (ROW, b""), (ROW, row(1, 0, 4)), (NEIGHBOUR, near(1, label=3)),
            (NEIGHBOUR, b"x"), (CLEAR, b"\x82\x09\x00"), (NEIGHBOUR, near(1, depth=9)), (0, b""),
        )  # fmt: skip
        for kind, body in bodies:
            post.box(kind, body)
        self.assertEqual(post.mail.taken, len(bodies))
        counters = {"taken": 8, "unknown": 2, "unusable": 5, "deep": 1}
        self.assertEqual(post.mail.counters, counters)
        self.assertEqual((len(post.mail.neighbours), post.mail.head), (0, None))

    def test_written_after_a_while_or_eight_boxes(self):
        post = Post(machine())
        mail = post.mail
        post.box(NEIGHBOUR, near(1), now=10)
        self.assertEqual((mail.wakes(), post.kept, mail.busy()), ([10 + SAVE_MS], None, True))
        post.do(mail.on_tick(9 + SAVE_MS), 9 + SAVE_MS)
        self.assertEqual((post.kept, mail.report(MODEL)), (None, (None, 0)))
        post.do(mail.on_tick(10 + SAVE_MS), 10 + SAVE_MS)
        self.assertEqual((mail.ask, mail.report(MODEL), mail.busy()), (True, (None, 1), False))
        mail.ask = False
        for n in range(SAVE_BOXES):
            self.assertEqual(mail.report(MODEL), (None, 1))
            post.box(NEIGHBOUR, near(2 + n), now=20 + SAVE_MS)
        self.assertEqual((mail.ask, mail.report(MODEL)), (True, (None, 1 + SAVE_BOXES)))
        self.assertEqual(len([e for e in post.out if type(e) is Keep]), 2)

    def test_what_comes_while_it_writes_is_written_next(self):
        mail = machine()
        out = []
        mail.on_box(Box(5, NEIGHBOUR, near(1), 1), 0)
        mail.flush(out)
        mail.on_box(Box(6, NEIGHBOUR, near(2), 2), 1)
        mail.flush(out)
        self.assertEqual(len(out), 1)
        self.assertTrue(mail.owns(out[0].id))
        self.assertEqual(mail.on_done(700), [])
        self.assertEqual((mail.report(MODEL), mail.busy()), ((None, 1), True))
        (keep,) = mail.on_tick(700 + SAVE_MS)
        self.assertFalse(mail.owns(out[0].id))
        mail.on_done(800 + SAVE_MS)
        self.assertEqual(mail.report(MODEL), (None, 2))
        self.assertEqual(machine(keep.data).taken, 2)

    def test_a_failed_write_is_tried_again_and_nothing_is_reported(self):
        mail = machine()
        (keep,) = mail.on_box(Box(5, CLEAR, encode_clear(2), 1), 0) + mail.on_tick(SAVE_MS)
        now, pauses = SAVE_MS, []
        for _ in range(9):
            (event,) = mail.on_error(DISK_FULL, now)
            self.assertEqual((event.name, mail.report(MODEL)), ("mail-not-written", (None, 0)))
            self.assertFalse(mail.ask)
            for number in range(mail.taken + 1, mail.taken + 10):
                self.assertEqual(mail.on_box(Box(number + 9, 9, b"", number), now), [])
            (wake,) = mail.wakes()
            pauses.append(wake - now)
            now = wake
            (keep,) = mail.on_tick(now)
        self.assertEqual(pauses, [2000, 4000, 8000, 16000, 32000] + [60000] * 4)
        mail.on_done(now)
        self.assertEqual(mail.report(MODEL), (None, 82))
        self.assertEqual(machine(keep.data).taken, 82)

    def test_duplicates_and_gaps_are_answered_but_not_too_often(self):
        post = Post(machine())
        mail = post.mail
        post.box(CLEAR, encode_clear(2), 7, now=50)
        self.assertTrue(mail.ask)
        mail.ask = False
        for number in (0xFFFFFFFF, 7, 7):
            post.box(CLEAR, encode_clear(2), number, now=60)
            self.assertFalse(mail.ask)
        self.assertEqual(mail.wakes(), [50 + ASK_MS])
        mail.on_tick(50 + ASK_MS)
        self.assertEqual((mail.ask, mail.wakes()), (True, []))


class Heads(unittest.TestCase):
    def test_applied_when_whole_whatever_the_order(self):
        for order in ((0, 1, 2), (2, 0, 1), (1, 1, 0, 2)):
            post = Post(machine())
            for i in order:
                self.assertEqual((post.mail.head, post.names()), (None, []))
                post.box(ROW, row(4, i))
            self.assertEqual((post.mail.head.version, post.names()), (4, ["head-applied"]))
            rows = [post.mail.head.rows[i].weights for i in range(3)]
            self.assertEqual(rows[0][:2], bytes([4, 11]))
            self.assertEqual(rows[2][:2], bytes([26, 33]))

    def test_another_version_drops_an_unfinished_one(self):
        post = Post(machine())
        for body in (row(4, 0), row(4, 1), row(5, 2), row(5, 0), row(4, 2), row(4, 1)):
            post.box(ROW, body)
        self.assertEqual(post.mail.head, None)
        post.box(ROW, row(4, 0))
        self.assertEqual(post.mail.head.version, 4)
        # One of another model or size is another one as well.
        for body in (row(6, 0), row(6, 1, model_id=b""), row(6, 2), row(6, 1, 2), row(6, 1)):
            post.box(ROW, body)
        self.assertEqual(post.mail.head.version, 4)

    def test_in_force_for_its_model_only(self):
        post = Post(machine())
        for body in sure_head(9, 1):
            post.box(ROW, body)
        post.do(post.mail.on_tick(SAVE_MS), SAVE_MS)
        self.assertEqual(post.mail.report(MODEL), (9, 3))
        self.assertEqual(post.mail.report(b"modelid2"), (None, 3))
        vector, scores = bytes(range(64)), bytes([250, 0, 5])
        said = post.mail.decide(scores, vector, MODEL, 0)
        head = post.mail.head
        self.assertEqual(said, (1, head.scores(vector)[1], (), 0, 9))
        self.assertEqual(post.mail.decide(scores, vector, b"modelid2", 0), None)
        for body in sure_head(10, 2, model_id=b""):
            post.box(ROW, body)
        for model_id in (MODEL, b"modelid2", None):
            self.assertEqual(post.mail.decide(scores, vector, model_id, 0)[0], 2)

    def test_clear(self):
        post = Post(machine())
        for body in sure_head(9, 1):
            post.box(ROW, body)
        post.box(CLEAR, encode_clear(CLEAR_HEAD, 8))
        self.assertEqual(post.mail.head.version, 9)
        post.box(ROW, row(10, 0))
        post.box(ROW, row(10, 1))
        post.box(CLEAR, encode_clear(CLEAR_HEAD, 10))
        post.box(ROW, row(10, 2))
        self.assertEqual(post.mail.head.version, 9)
        post.box(CLEAR, encode_clear(CLEAR_HEAD, 9))
        self.assertEqual(post.mail.head, None)
        post.box(NEIGHBOUR, near(1))
        post.box(CLEAR, encode_clear(CLEAR_NEIGHBOURS))
        self.assertEqual(len(post.mail.neighbours), 0)

    def test_head_first_then_neighbours(self):
        post = Post(machine())
        vector = bytes(range(64))
        post.box(NEIGHBOUR, near(1, weight=255))
        self.assertEqual(post.mail.decide(bytes([120, 100, 30]), vector, MODEL, 0)[0], 2)
        for body in sure_head(9, 1):
            post.box(ROW, body)
        said = post.mail.decide(bytes([255, 0, 0]), vector, MODEL, 0)
        self.assertEqual((said.parents, said.depth, said.head), ((b"\x01" * 16,), 1, 9))
        self.assertEqual(post.mail.counters["synthesised"], 2)


class State(unittest.TestCase):
    def test_comes_back_as_it_was(self):
        post = Post(machine())
        for body in sure_head(9, 1):
            post.box(ROW, body)
        post.box(ROW, row(10, 0))
        post.box(ROW, row(10, 1))
        for n in range(3):
            post.box(NEIGHBOUR, near(n, bytes([n] * 64)))
        again = Post(machine(post.kept), post.kept)
        self.assertEqual((again.mail.taken, again.mail.counter), (8, post.counter))
        self.assertEqual(again.mail.report(MODEL), (9, 8))
        self.assertEqual(again.mail.state(), post.kept)
        again.box(ROW, row(10, 2))
        self.assertEqual(again.mail.head.version, 10)

    def test_the_longest(self):
        post = Post(machine(labels=64, rows=64, neighbours=23))
        post.counter = 1 << 61
        for version in (65534, 65535):
            for i in range(64):
                weights = bytes([i] * 64)
                last = Row(version, MODEL, i, 64, weights, -(1 << 31), (1 << 31) - 1, 62)
                if version == 65534 or i < 63:
                    post.box(ROW, encode_row(last))
        for n in range(23):
            vector = bytearray(64)
            vector[n] = 1
            post.box(NEIGHBOUR, near(n, bytes(vector)))
        state = post.mail.state()
        self.assertTrue(len(state) <= STATE_MAX)
        self.assertTrue(len(post.mail.neighbours.data) <= TABLE_MAX)
        self.assertEqual(machine(state, 64, rows=64, neighbours=23).state(), state)

    def test_what_was_kept_for_another_domain_is_dropped(self):
        """Labels and vectors mean something else there; numbers go on."""
        post = Post(machine())
        for body in sure_head(9, 1, model_id=b"") + [row(10, 0)]:
            post.box(ROW, body)
        post.box(NEIGHBOUR, near(1))
        peers = settings().peers
        other = Mail(peers, Ids(), post.mail.state(), LABELS, 0, b"otherone")
        self.assertEqual((other.head, len(other.neighbours)), (None, 0))
        self.assertEqual((other.taken, other.counter), (5, post.counter))
        again = Mail(peers, Ids(), other.state(), LABELS, 0, b"otherone")
        self.assertEqual(again.state(), other.state())

    def test_nonsense_begins_again(self):
        post = Post(machine())
        for body in sure_head(9, 1):
            post.box(ROW, body)
        good = post.mail.state()
        for data in (b"", b"\x80", b"\x00", good[:-1], b"\x87\x02" + good[2:], b"\x87\x01\x00\x00"):
            mail = machine(data)
            self.assertEqual((mail.taken, mail.head, len(mail.neighbours)), (0, None, 0))


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


class Cuts(unittest.TestCase):
    """The power goes at any moment of any write: what was reported taken is there."""

    def story(self, store, reported):
        """Boxes of every kind, written one by one; `reported` as the hellos would say."""
        post = Post(machine())
        slot = TwoSlot(store, "mail", STATE_MAX)
        slot.load()
        now = 0
        bodies = [(ROW, b) for b in sure_head(1, 1)] + [(NEIGHBOUR, near(n)) for n in range(3)]
        bodies += [(ROW, row(2, 0)), (CLEAR, encode_clear(CLEAR_HEAD, 1)), (ROW, row(2, 1))]
        bodies += [(ROW, row(2, 2)), (CLEAR, encode_clear(CLEAR_NEIGHBOURS)), (99, b"")]
        mail = post.mail
        states = {0: mail.state()}
        for kind, body in bodies:
            post.counter += 1
            out = mail.on_box(Box(post.counter, kind, body, mail.taken + 1), now)
            mail.flush(out)
            for effect in out:
                if type(effect) is Keep:
                    states[mail.taken] = effect.data
                    reported.append((mail.report(MODEL), states))
                    slot.save(effect.data)
                    mail.on_done(now)
                    reported.append((mail.report(MODEL), states))
            now += 1000

    def test_every_cut(self):
        whole = SimFlash(1)
        self.story(whole, [])
        cuts = 0
        for at in range(1, whole.changes + 1):
            for seed in range(8):
                store = SimFlash(seed)
                store.cut_at = at
                reported = []
                try:
                    self.story(store, reported)
                    self.fail("no cut at %d" % at)
                except PowerCut:
                    cuts += 1
                (head, taken), states = reported[-1]
                after = machine(TwoSlot(store.power_cycle(), "mail", STATE_MAX).load())
                # What was being written may be there as well, whole.
                self.assertTrue(taken <= after.taken <= taken + 1, (at, taken, after.taken))
                self.assertEqual(after.state(), states[after.taken])
                if after.taken == taken:
                    self.assertEqual(after.report(MODEL), (head, taken))
        self.assertEqual(cuts, 8 * whole.changes)
        self.assertTrue(cuts >= 100)


if __name__ == "__main__":
    unittest.main()
