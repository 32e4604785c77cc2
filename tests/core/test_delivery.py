"""Custody: the delivery machine on a real journal, with a gateway in a dictionary."""

import sys
import unittest

from delivery_kit import config, counters
from rig import UTC_MS, Gateway, RamStore, Rand, Rig

from edge_agent import delivery, dialogue, frame
from edge_agent.connection import CONNECTING, UP
from edge_agent.errors import JournalError, StoreError
from edge_agent.outbox import MAX_SENDS


class TestGreeting(unittest.TestCase):
    def test_nothing_is_published_before_the_hello_is_answered(self):
        r, g = Rig(config=config()), Gateway()
        for _ in range(3):
            r.window()
        r.start()
        r.up()
        self.assertEqual(r.kinds(), ["state", "hello"])
        self.assertEqual(r.sent[0].payload, b"online")
        self.assertTrue(r.sent[0].retain)
        r.run(dialogue.HELLO_WAIT_MS - 1)
        self.assertEqual(r.seqs(), [])
        r.serve(g)
        self.assertEqual(len(g.held), 3)
        self.assertEqual(r.journal.stats()["pending"], [0, 0, 0])

    def test_without_an_answer_the_broker_gets_it_after_a_while(self):
        r = Rig(config=config({"custody": 10}))
        for _ in range(30):
            r.window()
        r.start()
        r.up()
        r.run(dialogue.HELLO_WAIT_MS)
        self.assertEqual(len(r.seqs()), 8)
        for _ in range(40):
            for p in list(r.sent):
                r.puback(p)
            r.run(1000)
        self.assertEqual(counters(r)["sent"], 10, "custody bounds what the broker keeps for us")

    def test_hello_tells_what_is_held(self):
        r, g = Rig(config=config()), Gateway()
        for _ in range(3):
            r.window()
        r.start()
        r.up()
        r.serve(g)
        h = g.hellos[0]
        self.assertEqual((h.journal, h.next_seq, h.floor, h.boot), (r.journal.journal_id, 4, 1, 1))
        self.assertEqual((h.pending, h.model, h.version), (3, b"modelid1", "0.1"))
        r.down()
        r.run(300000)
        r.up()
        r.serve(g)
        self.assertNotEqual(g.hellos[1].nonce, h.nonce)
        self.assertEqual(g.hellos[1].pending, 0)

    def test_one_hello_per_journal_id_held(self):
        r, g = Rig(config=config()), Gateway()
        r.window()
        r.journal.mint()
        r.core.intake.adopt(r.journal.journal_id, r.journal.next_seq)
        r.core.delivery.on_facts(r.facts(), r.now)
        r.window()
        r.start()
        r.up()
        self.assertEqual(r.kinds(), ["state", "hello", "hello"])
        r.serve(g)
        self.assertEqual(g.hellos[0].nonce, g.hellos[1].nonce)
        self.assertEqual(len({h.journal for h in g.hellos}), 2)
        self.assertEqual(len(g.held), 2)
        self.assertTrue(r.core.drained())


class TestCustody(unittest.TestCase):
    def test_window_bounds_what_flies_and_puback_makes_room_only(self):
        r, g = Rig(config=config({"window": 4, "custody": 6, "pace_per_s": 10000})), Gateway()
        r.start()
        r.up()
        r.serve(g)
        for _ in range(20):
            r.window()
        self.assertEqual(r.seqs(), [1, 2, 3, 4])
        for p in list(r.sent):
            r.puback(p)
        self.assertEqual(r.seqs(), [5, 6], "six in custody of nobody: no more is sent")
        self.assertEqual(sum(r.journal.stats()["pending"]), 20, "PUBACK frees nothing")
        r.message("ack", g.ack(r.journal.journal_id, [(1, 3)]))
        self.assertEqual(sum(r.journal.stats()["pending"]), 17)
        self.assertEqual(r.seqs(), [5, 6, 7, 8])
        self.assertEqual(counters(r)["confirmed"], 3)

    def test_ack_before_puback(self):
        r, g = Rig(config=config()), Gateway()
        r.start()
        r.up()
        r.serve(g)
        r.window()
        publish = r.sent[0]
        r.message("ack", g.ack(r.journal.journal_id, [(1, 1)]))
        self.assertEqual(sum(r.journal.stats()["pending"]), 0)
        r.puback(publish)
        self.assertTrue(r.core.drained())

    def test_ack_of_an_earlier_connection_counts_for_nothing(self):
        r, g = Rig(config=config()), Gateway()
        r.start()
        r.up()
        r.serve(g)
        r.window()
        for p in list(r.sent):
            for answer in g.take(r.payload(p)):
                late = answer
        r.down()
        r.run(5000)
        r.up()
        r.message("ack", late)
        self.assertEqual(sum(r.journal.stats()["pending"]), 1)
        self.assertEqual(counters(r)["ack-old-nonce"], 1)
        r.serve(g)
        self.assertEqual(sum(r.journal.stats()["pending"]), 0)
        self.assertEqual(g.duplicates, 1)

    def test_first_ack_frees_nothing_that_was_published_before_it(self):
        """It may say what the gateway held before: perhaps a twin's bytes."""
        r, g = Rig(config=config()), Gateway()
        r.window()
        r.start()
        r.up()
        r.run(dialogue.HELLO_WAIT_MS)
        self.assertEqual(r.seqs(), [1])
        for p in list(r.sent):
            r.puback(p)
        g.nonce = r.core.delivery.gateway.nonce
        r.message("ack", g.ack(r.journal.journal_id, [(1, 1)]))
        self.assertEqual(sum(r.journal.stats()["pending"]), 1)
        self.assertEqual(r.seqs(), [1], "asked once more")
        r.serve(g)
        self.assertEqual(sum(r.journal.stats()["pending"]), 0)
        self.assertTrue(r.core.drained())

    def test_yesterdays_ack_replayed_is_stale(self):
        r, g = Rig(config=config()), Gateway()
        r.start()
        r.up()
        r.serve(g)
        r.window()
        old = g.ack(r.journal.journal_id, [(1, 1)])
        new = g.ack(r.journal.journal_id, [])
        r.message("ack", new)
        r.message("ack", old)
        self.assertEqual(sum(r.journal.stats()["pending"]), 1)
        self.assertEqual(r.core.counters["stale-ack"], 1)

    def test_ack_for_another_journal_is_counted(self):
        r, g = Rig(config=config()), Gateway()
        r.start()
        r.up()
        r.serve(g)
        r.window()
        r.message("ack", g.ack(b"\x09\x09\x09\x09", [(1, 1)]))
        self.assertEqual(sum(r.journal.stats()["pending"]), 1)
        self.assertEqual(counters(r)["ack-unknown-journal"], 1)

    def test_refused_goes_to_quarantine_and_is_never_sent_again(self):
        r, g = Rig(config=config()), Gateway()
        g.refuse = {2: "unknown-label"}
        r.start()
        r.up()
        r.serve(g)
        for _ in range(4):
            r.window()
        r.serve(g)
        r.run(3600000)
        self.assertEqual(sorted(s for _, s in g.held), [1, 3, 4])
        kept = r.journal.quarantined()
        self.assertEqual([(k[0].seq, k[1]) for k in kept], [(2, frame.REASONS["unknown-label"])])
        self.assertEqual(r.core.delivery.refusals, {"unknown-label": 1})
        self.assertTrue(r.core.drained())
        self.assertEqual(counters(r)["sent"], 4)

    def test_quota_may_take_a_record_under_way(self):
        r = Rig(config=config())
        r.start()
        r.up()
        r.window()
        r.run(dialogue.HELLO_WAIT_MS)
        publish = next(p for p in r.sent if p.ref is not None)
        r.journal.free(publish.ref.journal, [(1, 1)])  # stands for a drop
        r.sent.remove(publish)
        gone = JournalError("record 1 is not held", "journal")
        r.do(r.core.on_error(publish.id, gone, r.now))
        self.assertTrue(r.core.drained())
        self.assertEqual(counters(r)["unreadable"], 1)

    def test_a_store_that_cannot_read_is_asked_again_later(self):
        r, g = Rig(config=config({"late_s": 60})), Gateway()
        r.start()
        r.up()
        r.serve(g)
        r.window()
        publish = r.sent.pop()
        r.do(r.core.on_error(publish.id, StoreError("bad block", "n1", "", 5), r.now))
        self.assertFalse(r.core.drained())
        r.serve(g)
        self.assertEqual(len(g.held), 0)
        r.run(61000)
        r.serve(g)
        self.assertEqual(len(g.held), 1)


class TestUnanswered(unittest.TestCase):
    def test_after_eight_times_it_goes_behind_the_rest_and_is_reported(self):
        r, g = Rig(config=config({"ack_timeout_s": 1, "late_s": 600})), Gateway()
        g.deaf_to = [1]
        r.start()
        r.up()
        r.serve(g)
        r.window()
        for _ in range(400):
            r.window(2)  # the gateway answers these, so it is not silent
            r.serve(g)
            r.run(1000)
            if r.named("record-unanswered"):
                break
        self.assertEqual(len(r.named("record-unanswered")), 1)
        self.assertEqual(counters(r)["sent-again"], MAX_SENDS - 1)
        self.assertEqual(r.core.delivery.status()["left_behind"], 1)
        self.assertEqual(sum(r.journal.stats()["pending"]), 1)
        self.assertFalse(r.core.drained())
        g.deaf_to = []
        r.run(601000)
        r.serve(g)
        self.assertTrue((r.journal.journal_id, 1) in g.held)
        self.assertTrue(r.core.drained())

    def test_a_silent_gateway_gets_hellos_not_repeats(self):
        r, g = Rig(config=config({"ack_timeout_s": 10})), Gateway()
        r.start()
        r.up()
        r.serve(g)
        for _ in range(5):
            r.window()
        six_hours = 21600000
        hellos = 0
        end = r.now + six_hours
        while r.now < end:
            for p in list(r.sent):
                hellos += p.kind == "hello"
                r.puback(p)
            r.run(60000)
        self.assertEqual(counters(r).get("sent-again", 0), 0)
        self.assertLess(hellos, 46)  # one in ten minutes, and the way there
        self.assertGreater(hellos, 30)
        self.assertEqual(len(r.named("gateway-silent")), 1)
        # It comes back with nothing in its queue: the next hello tells it to answer.
        for _ in range(30):
            r.serve(g)
            r.run(60000)
        self.assertEqual(len(g.held), 5)
        self.assertTrue(r.core.drained())

    def test_a_flapping_link_parks_one_copy_at_the_broker(self):
        r, g = Rig(config=config()), Gateway()
        for _ in range(10):
            r.window()
        r.start()
        for _ in range(300):
            if r.core.delivery.link.state == CONNECTING:
                r.up()
            r.run(1000)
            for p in list(r.sent):
                r.puback(p)
            link = r.core.delivery.link
            if link.state == UP and r.now - link.up_ms > 12000:
                r.down("broker")
        self.assertGreater(r.connects, 5)
        self.assertEqual(counters(r)["sent"], 10)
        self.assertEqual(counters(r).get("sent-again", 0), 0)
        if r.core.delivery.link.state != UP:
            r.run(120000)
            r.up()
        for _ in range(20):
            r.serve(g)
            r.run(60000)
        self.assertEqual(len(g.held), 10)
        self.assertTrue(r.core.drained())

    def test_a_broker_that_acknowledges_nothing_is_left(self):
        r, g = Rig(config=config()), Gateway()
        r.start()
        r.up()
        r.serve(g)
        r.window()
        r.run(delivery.PUBACK_TIMEOUT_MS)
        self.assertEqual(r.disconnects, ["timeout"])
        r.down("timeout")
        r.run(2000)
        self.assertEqual(r.connects, 2)

    def test_gateway_that_forgot_our_hello_is_greeted_again(self):
        r, g = Rig(config=config()), Gateway()
        r.start()
        r.up()
        r.serve(g)
        g.nonce = b""  # restarted
        r.window()
        r.serve(g)
        self.assertEqual(sum(r.journal.stats()["pending"]), 1)
        r.run(dialogue.ASK_AGAIN_MS)
        r.serve(g)
        r.run(60000)
        r.serve(g)
        self.assertEqual(sum(r.journal.stats()["pending"]), 0)
        self.assertEqual(r.named("gateway-silent"), [])


class TestTime(unittest.TestCase):
    def test_only_this_connections_nonce_sets_the_clock(self):
        r, g = Rig(config=config()), Gateway()
        r.start()
        r.up()
        jid = r.journal.journal_id
        r.message("ack", g.ack(jid, [], nonce=b"\x07" * 8))
        self.assertEqual((r.times, r.core.utc_s(r.now)), ([], 0))
        r.serve(g)
        self.assertEqual(r.times, [UTC_MS])
        r.now += 5000
        self.assertEqual(r.core.utc_s(r.now), UTC_MS // 1000 + 5)
        g.take(r.payload_of_hello())
        r.message("ack", g.ack(jid, [], utc_ms=UTC_MS + 9000))
        self.assertEqual(r.times, [UTC_MS], "once per connection")
        self.assertEqual(r.core.utc_s(r.now), UTC_MS // 1000 + 9, "the fastest ack is right")

    def test_absurd_times_are_unknown(self):
        for utc_ms in (0, 1000, 1 << 40, 4092599349000):  # 1970, 1970, 2004, 2099
            r, g = Rig(config=config()), Gateway()
            r.start()
            r.up()
            g.nonce = r.core.delivery.gateway.nonce
            r.message("ack", g.ack(r.journal.journal_id, [], utc_ms=utc_ms))
            self.assertEqual((r.times, r.core.utc_s(r.now)), ([], 0))
            self.assertEqual(counters(r)["time-implausible"], 1)


class TestPace(unittest.TestCase):
    def test_backlog_is_paced_and_live_goes_first(self):
        settings = {"pace_per_s": 2, "window": 4}
        r, g = Rig(config=config(settings)), Gateway()
        for _ in range(30):
            r.window()
        r.start()
        r.up()
        r.serve(g)
        self.assertEqual(len(g.held), 4, "a burst of one window")
        r.window(2)
        self.assertEqual(r.seqs(), [31])
        r.serve(g)
        start = r.now
        while len(g.held) < 31:
            r.run(500)
            r.serve(g)
            self.assertLess(r.now - start, 60000)
        self.assertGreater(r.now - start, 12000)  # 26 records at 2 a second

    def test_urgent_before_normal_before_bulk_and_not_paced(self):
        settings = config(
            {"pace_per_s": 1, "window": 2}, priorities={"rest": 2, "walk": 1, "run": 0}
        )
        r, g = Rig(config=settings), Gateway()
        for i in range(18):
            r.window(i % 3)
        order = []
        r.start()
        r.up()
        while not r.core.drained():
            for p in list(r.sent):
                if p.ref is not None:
                    order.append(p.ref.priority)
                payload = r.payload(p)
                r.puback(p)
                if p.kind != "state":
                    for answer in g.take(payload):
                        r.message("ack", answer)
            r.run(1000)
        self.assertEqual(order, sorted(order))
        self.assertEqual(len(order), 18)


class TestAnything(unittest.TestCase):
    def test_any_order_of_events_neither_breaks_nor_loses(self):
        for seed in range(5):
            self.storm(seed, 150 if sys.implementation.name == "micropython" else 400)

    def storm(self, seed, steps):
        chance = Rand(seed * 7919 + 1)
        store, g = RamStore(), Gateway()
        settings = {"ack_timeout_s": 2, "pace_per_s": 100, "late_s": 5, "window": 3, "custody": 5}
        made = []
        r = Rig(store, config(settings), seed=seed + 100, ledger=True)
        r.start()
        old_answers = []
        for _ in range(steps):
            what = chance.bytes(1)[0] % 16
            state = r.core.delivery.link.state
            if what < 4:
                r.window(what % 3)
            elif what < 9 and r.sent:
                publish = r.sent[chance.bytes(1)[0] % len(r.sent)]
                fate = chance.bytes(1)[0] % 4
                payload = r.payload(publish)
                if fate:
                    r.puback(publish)
                if fate != 3 and publish.kind != "state":
                    old_answers += g.take(payload)
            elif what < 12 and old_answers:
                i = chance.bytes(1)[0] % len(old_answers)
                answer = old_answers[i]
                if chance.bytes(1)[0] % 4:
                    old_answers.pop(i)
                r.message("ack", answer)
            elif what == 12 and state == UP:
                r.down(("broker", "radio", "timeout")[chance.bytes(1)[0] % 3])
            elif what == 13:
                made += r.committed
                r = Rig(store, config(settings), seed=seed * 50 + len(made), ledger=True)
                r.start()
            else:
                r.run(chance.bytes(1)[0] * 20)
            if r.core.delivery.link.state == CONNECTING:
                r.up()
            if r.disconnects:
                r.disconnects = []
                r.down("timeout")
        made += r.committed
        for _ in range(200):
            r.serve(g)
            r.run(1000)
            if r.core.delivery.link.state == CONNECTING:
                r.up()
            if r.disconnects:
                r.disconnects = []
                r.down("closed")
            if r.core.drained() and not sum(r.journal.stats()["pending"]):
                break
        self.assertTrue(r.core.drained(), "seed %d" % seed)
        got = [bytes(f) for f in g.held.values()]
        for _, seq, data in made:
            self.assertTrue(data in got, "seed %d, record %d" % (seed, seq))
        self.assertEqual(len(got), len(made), "seed %d" % seed)
        self.assertEqual((len(g.conflicts), r.journal.stats()["quarantined"]), (0, 0))
