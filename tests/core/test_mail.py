"""A device's end of its mailbox: taken in order, written at once, reported after that."""

import unittest

from mail_kit import DISK_FULL, LABELS, MODEL, near, row, settings, sure_head
from sim_flash import PowerCut, SimFlash

from edge_agent.effects import Ids, Keep
from edge_agent.errors import FrameError
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
from edge_agent.twoslot import TwoSlot


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
