"""The MQTT session without I/O: client and a small broker wired in memory, and time."""

import unittest

import mqtt_peer as peer

from mpy_port.mqtt import packets
from mpy_port.mqtt.session import (
    CLOSED,
    OPEN,
    Connected,
    Failed,
    Lost,
    Message,
    Published,
    Session,
)


def make(window=8, topics=("in",), **kw):
    kw.setdefault("keepalive_s", 30)
    return Session({"client_id": "dev", "password": "hush", "username": "u"}, list(topics),
                   window=window, **kw)  # fmt: skip


def events(session):
    out = []
    while True:
        event = session.next_event()
        if event is None:
            return out
        out.append(event)


def of(kind, found):
    return [e for e in found if isinstance(e, kind)]


def sent(session, now=0):
    """Everything the session wants to send, as dicts."""
    out = []
    while True:
        data = session.output(now)
        if not data:
            return out
        found, left = peer.split(data)
        assert not left
        out += [peer.read(first, body) for first, body in found]


def opened(session, now=0, present=False):
    session.open(now)
    assert sent(session, now)[0]["kind"] == "connect"
    session.received(peer.connack(present), now)
    asked = sent(session, now)
    if asked:
        session.received(peer.suback(asked[0]["id"], [1] * len(asked[0]["filters"])), now)
    return session


class Opening(unittest.TestCase):
    def test_connect_subscribe_open(self):
        s = make(topics=("in", "box"))
        s.open(0)
        first = sent(s)
        self.assertEqual([p["kind"] for p in first], ["connect"])
        self.assertEqual((first[0]["clean"], first[0]["keepalive"]), (False, 30))
        s.publish("t", b"x")
        self.assertEqual(sent(s), [], "nothing before CONNACK")
        s.received(peer.connack(True), 5)
        (ask,) = sent(s)
        self.assertEqual(ask["filters"], [("in", 1), ("box", 1)])
        self.assertEqual(events(s), [])
        s.received(peer.suback(ask["id"], [1, 0]), 6)
        self.assertEqual(events(s), [Connected(True)])
        self.assertEqual((s.state, [p["kind"] for p in sent(s)]), (OPEN, ["publish"]))

    def test_nothing_to_subscribe(self):
        s = opened(make(topics=()))
        self.assertEqual((events(s), s.state), ([Connected(False)], OPEN))

    def test_refusals(self):
        for code, reason in ((1, "refused"), (2, "refused"), (3, "broker"), (4, "refused"),
                             (5, "refused")):  # fmt: skip
            s = make()
            s.open(0)
            s.received(peer.connack(False, code), 1)
            (lost,) = events(s)
            self.assertEqual((lost.reason, s.state), (reason, CLOSED))
        s = make(topics=("in", "box"))
        s.open(0)
        sent(s)
        s.received(peer.connack(), 1)
        s.received(peer.suback(sent(s)[0]["id"], [1, 128]), 2)
        (lost,) = events(s)
        self.assertEqual(lost.reason, "refused")
        self.assertTrue("box" in lost.detail)

    def test_a_broker_that_does_not_know_mqtt(self):
        for talk in (
            [b"HTTP/1.0 400"],
            [peer.puback(1)],
            [peer.suback(1, [1])],
            [peer.connack(), peer.connack()],
            [b"\x20\x02\x01\x05"],
        ):
            s = make()
            s.open(0)
            for data in talk:
                s.received(data, 1)
            self.assertEqual([e.reason for e in of(Lost, events(s))], ["broker"])
            self.assertEqual(s.state, CLOSED)
            s.received(peer.connack(), 2)
            self.assertEqual((events(s), s.output(3), s.deadline()), ([], b"", None))

    def test_no_secret_in_repr(self):
        self.assertTrue("hush" not in repr(opened(make())))


class Time(unittest.TestCase):
    def lost(self, s, at):
        """The session ends at `at` and not a millisecond before; why."""
        s.tick(at - 1)
        self.assertEqual(of(Lost, events(s)), [])
        s.tick(at)
        (lost,) = of(Lost, events(s))
        self.assertEqual((s.state, s.deadline()), (CLOSED, None))
        return lost.reason, lost.detail

    def test_silent_broker(self):
        s = make(answer_ms=700)
        s.open(1000)
        sent(s, 1000)
        self.assertEqual(s.deadline(), 1700)
        self.assertEqual(self.lost(s, 1700), ("timeout", "no answer to CONNECT"))
        s = make(answer_ms=700)
        s.open(1000)
        sent(s, 1000)
        s.received(peer.connack(), 1500)
        sent(s, 1500)
        self.assertEqual(s.deadline(), 2200)
        self.assertEqual(self.lost(s, 2200), ("timeout", "no answer to SUBSCRIBE"))

    def test_what_waited_at_the_broker_comes_before_its_suback(self):
        s = make(answer_ms=700)
        s.open(1000)
        s.received(peer.connack(True), 1500)
        sent(s, 1500)
        for i in range(1, 9):
            s.received(peer.publish("t", b"x", 1, packet_id=i), 1500 + 300 * i)
            s.tick(1500 + 300 * i)
        self.assertEqual(len(of(Message, events(s))), 8)
        self.assertEqual(s.deadline(), 1500 + 2400 + 700)
        self.assertEqual(self.lost(s, 4600), ("timeout", "no answer to SUBSCRIBE"))

    def test_keepalive(self):
        s = opened(make(keepalive_s=10, answer_ms=2000))
        events(s)
        now = 0
        for _ in range(3):
            self.assertEqual(s.deadline(), now + 7500)
            s.tick(now + 7499)
            self.assertEqual(sent(s, now + 7499), [])
            now += 7500
            s.tick(now)
            self.assertEqual(sent(s, now), [{"kind": "ping"}])
            self.assertEqual(s.deadline(), now + 2000)
            s.received(peer.PINGRESP, now + 100)
            # We spoke at `now`, the broker a little later: the earlier one counts.
        s.tick(now + 7500)
        self.assertEqual(self.lost(s, now + 9500), ("timeout", "no answer to PINGREQ"))

    def test_a_sender_of_qos_0_notices_a_dead_broker(self):
        s = opened(make(keepalive_s=10, answer_ms=2000))
        events(s)
        for now in range(0, 7500, 100):
            s.publish("t", b"x", 0)
            sent(s, now)
            s.tick(now)
        s.tick(7500)
        self.assertEqual([p["kind"] for p in sent(s, 7500)], ["ping"])
        self.assertEqual(self.lost(s, 9500), ("timeout", "no answer to PINGREQ"))

    def test_keepalive_off(self):
        s = opened(make(keepalive_s=0))
        self.assertEqual(s.deadline(), None)
        s.tick(10**9)
        self.assertEqual((s.state, s.output(10**9)), (OPEN, b""))

    def test_puback_timeout(self):
        s = opened(make(puback_ms=5000, keepalive_s=60))
        events(s)
        s.publish("t", b"a")
        sent(s, 100)
        s.publish("t", b"b")
        sent(s, 200)
        self.assertEqual(s.deadline(), 5100)
        s.received(peer.puback(2), 300)
        self.assertEqual(s.deadline(), 5200, "ids are given in order; 1 went to SUBSCRIBE")
        self.assertEqual(self.lost(s, 5200), ("timeout", "no PUBACK in 5000 ms"))

    def test_twelve_quiet_hours(self):
        s = opened(make(keepalive_s=30))
        now = pings = 0
        while now < 12 * 3600000:
            now = s.deadline()
            s.tick(now)
            pings += len(sent(s, now))
            now += 40
            s.received(peer.PINGRESP, now)
        self.assertEqual((s.state, of(Lost, events(s))), (OPEN, []))
        self.assertEqual(pings, 1920)


class Publishing(unittest.TestCase):
    def test_the_window_holds_and_moves(self):
        s = opened(make(window=3))
        events(s)
        asked = []

        def payload(i):
            def give():
                asked.append(i)
                return b"%d" % i

            return give

        slots = [s.publish("t", payload(i)) for i in range(7)]
        self.assertEqual(asked, [])
        first = sent(s, 1)
        self.assertEqual([p["payload"] for p in first], [b"0", b"1", b"2"])
        self.assertEqual((asked, s.in_flight, s.pending), ([0, 1, 2], 3, 7))
        self.assertFalse(s.room)
        s.received(peer.puback(first[1]["id"]), 2)
        self.assertEqual(events(s), [Published(slots[1])])
        self.assertEqual([p["payload"] for p in sent(s, 2)], [b"3"])
        s.received(peer.puback(first[1]["id"]) + peer.puback(999), 3)
        self.assertEqual((events(s), s.stray), ([], 2))
        for slot in (slots[0], slots[2], slots[3]):
            s.received(peer.puback(slot.packet_id), 4)
        self.assertEqual(len(sent(s, 5)), 3)
        self.assertEqual(s.pending, 3)

    def test_qos_0_needs_no_place_in_the_window_but_keeps_its_turn(self):
        s = opened(make(window=1))
        events(s)
        a, b, c = s.publish("t", b"a"), s.publish("t", b"b", 0, True), s.publish("t", b"c")
        out = sent(s, 1)
        self.assertEqual([(p["payload"], p["qos"], p["retain"]) for p in out],
                         [(b"a", 1, False), (b"b", 0, True)])  # fmt: skip
        self.assertEqual(events(s), [Published(b)])
        s.received(peer.puback(a.packet_id), 2)
        self.assertEqual([p["payload"] for p in sent(s, 2)], [b"c"])
        self.assertEqual((c.qos, s.pending), (1, 1))

    def test_packet_ids_wrap_and_skip_those_in_use(self):
        s = opened(make(window=2))
        held = s.publish("t", b"held")
        sent(s)
        s._next_id = 65530  # a lifetime later
        seen = []
        for _ in range(12):
            slot = s.publish("t", b"")
            s.output(0)
            seen.append(slot.packet_id)
            s.received(peer.puback(slot.packet_id), 0)
            s.next_event()
        after = [n for n in range(1, 20) if n != held.packet_id]
        self.assertEqual(seen, [65531, 65532, 65533, 65534, 65535] + after[:7])

    def test_a_payload_that_is_gone_fails_alone(self):
        s = opened(make())
        events(s)

        def gone():
            raise KeyError("segment")

        a, b, c = s.publish("t", b"a"), s.publish("t", gone), s.publish("no/+", b"c")
        d = s.publish("t", b"d")
        self.assertEqual([p["payload"] for p in sent(s, 1)], [b"a", b"d"])
        failed = of(Failed, events(s))
        self.assertEqual([f.slot for f in failed], [b, c])
        self.assertEqual([type(f.error) for f in failed], [KeyError, ValueError])
        s.received(peer.puback(a.packet_id) + peer.puback(d.packet_id), 2)
        self.assertEqual(s.pending, 0)

    def test_dup_on_resend_with_the_session_and_without(self):
        for present in (True, False):
            s = opened(make(window=3))
            contents = {0: b"0", 1: b"1", 2: b"2", 3: b"3"}

            def read(i, contents=contents):
                return contents[i]

            slots = [s.publish("t", lambda i=i, read=read: read(i)) for i in range(4)]
            first = sent(s, 1)
            s.received(peer.puback(slots[1].packet_id), 2)
            events(s)
            s.closed(True)
            self.assertEqual([e.reason for e in events(s)], ["broker"])
            contents[0] = b"0 read anew"
            opened(s, 10, present)
            again = sent(s, 11)
            self.assertEqual([p["payload"] for p in again], [b"0 read anew", b"2", b"3"])
            self.assertEqual([p["dup"] for p in again], [present, present, False])
            self.assertEqual(again[0]["id"], first[0]["id"])
            self.assertEqual(s.resent, 2 if present else 0)

    def test_without_keep_every_slot_fails(self):
        s = opened(make(window=2))
        events(s)
        slots = [s.publish("t", b"x") for _ in range(5)]
        sent(s)
        s.closed(False, "network", "gone")
        found = events(s)
        self.assertEqual(found[0], Lost("network", "gone"))
        self.assertEqual([e.slot for e in found[1:]], slots)
        self.assertEqual(s.pending, 0)

    def test_forgotten_while_waiting(self):
        s = opened(make(window=1))
        a, b, c = [s.publish("t", x) for x in (b"a", b"b", b"c")]
        sent(s)
        s.forget(b)
        s.forget(a)
        s.received(peer.puback(a.packet_id), 1)
        self.assertEqual([p["payload"] for p in sent(s, 1)], [b"c"])
        self.assertTrue(c.owner is None)

    def test_output_comes_in_segments(self):
        s = opened(make(window=32))
        for _ in range(32):
            s.publish("t", b"x" * 300)
        sizes = []
        while True:
            data = s.output(0)
            if not data:
                break
            sizes.append(len(data))
        self.assertTrue(max(sizes) < 1400 + 320 and len(sizes) > 5, sizes)


class Receiving(unittest.TestCase):
    def test_puback_only_after_it_was_taken(self):
        s = opened(make())
        events(s)
        s.received(peer.publish("in", b"a", 1, packet_id=7) + peer.publish("in", b"b"), 1)
        first, second = events(s)
        self.assertEqual(first, Message("in", b"a", 1, False, False, 7))
        self.assertEqual(sent(s, 1), [])
        s.taken(first)
        s.taken(second)
        self.assertEqual(sent(s, 2), [{"kind": "puback", "id": 7}])

    def test_messages_may_come_before_suback(self):
        s = make()
        s.open(0)
        sent(s)
        s.received(peer.connack(True) + peer.publish("in", b"a", 1, packet_id=7), 1)
        (message,) = events(s)
        self.assertEqual(message.payload, b"a")
        s.taken(message)
        self.assertEqual([p["kind"] for p in sent(s)], ["subscribe", "puback"])

    def test_too_long_is_acknowledged_and_counted(self):
        s = opened(make(max_packet=100))
        events(s)
        s.received(peer.publish("in", b"x" * 500, 1, packet_id=3), 1)
        self.assertEqual((events(s), s.oversize), ([], 1))
        self.assertEqual(sent(s, 1), [{"kind": "puback", "id": 3}])
        s.closed(False)
        opened(s, 2)
        self.assertEqual(s.oversize, 1)

    def test_an_answer_to_the_last_connection_is_not_sent_on_this_one(self):
        s = opened(make())
        s.received(peer.publish("in", b"a", 1, packet_id=7), 1)
        message = of(Message, events(s))[0]
        s.closed(False)
        s.taken(message)
        s.open(5)
        self.assertEqual([p["kind"] for p in sent(s, 5)], ["connect"])

    def test_goodbye(self):
        s = opened(make())
        s.goodbye()
        self.assertEqual(sent(s), [{"kind": "disconnect"}])


class Lottery:
    """Pseudo-random numbers, the same on every interpreter."""

    def __init__(self, seed):
        self.state = seed * 2654435761 % 4294967296 or 1

    def below(self, n):
        self.state ^= self.state << 13 & 0xFFFFFFFF
        self.state ^= self.state >> 17
        self.state ^= self.state << 5 & 0xFFFFFFFF
        return self.state % n


class Wired(unittest.TestCase):
    """Connections cut at any byte, brokers that forget, answers given twice."""

    def run_one(self, seed, count=40):
        lottery = Lottery(seed)
        s = make(window=1 + lottery.below(8), puback_ms=3000, answer_ms=1000)
        broker = peer.Broker()
        asked = [0] * count
        up, now = False, 0
        slots = []
        done = set()
        taken = []
        for i in range(10):
            broker.send("in", b"m%d" % i)
        connections = 0
        while len(done) < count or len(set(taken)) < 10:
            now += 1 + lottery.below(50)
            self.assertTrue(now < 10**6, "no end: %d %d" % (len(done), len(taken)))
            if not up:
                connections += 1
                if lottery.below(8) == 0:
                    kept = broker.queue
                    broker.forget()
                    broker.queue = kept  # what the publisher of those would send again
                s.open(now)
                up = True
            if len(slots) < count and lottery.below(2):
                i = len(slots)

                def payload(i=i):
                    asked[i] += 1
                    return b"%d" % i

                slot = s.publish("out", payload)
                slot.owner = i
                slots.append(slot)
            cut = lottery.below(12) == 0
            data = s.output(now)
            broker.silent = lottery.below(40) == 0
            broker.take(data[: lottery.below(len(data) + 1)] if cut else data)
            if not cut:
                back = broker.give()
                if lottery.below(6) == 0 and back[:1] == b"\x40":
                    back += back[:4]  # the same PUBACK again
                cut = lottery.below(12) == 0
                if cut:
                    back = back[: lottery.below(len(back) + 1)]
                while back:
                    n = 1 + lottery.below(9)
                    s.received(back[:n], now)
                    back = back[n:]
            s.tick(now)
            while True:
                event = s.next_event()
                if event is None:
                    break
                if isinstance(event, Published):
                    self.assertFalse(event.slot.owner in done)
                    done.add(event.slot.owner)
                elif isinstance(event, Message):
                    taken.append(event.payload)
                    s.taken(event)
                elif isinstance(event, Failed):
                    self.fail("a slot that was kept failed")
                elif isinstance(event, Lost):
                    cut = True
            if cut:
                s.closed(True)
                broker.link_down()
                up = False
        arrived = [p for _, p, _ in broker.got]
        for i in range(count):
            self.assertTrue(b"%d" % i in arrived)
            # Asked for each sending and no more: nothing was kept in between.
            self.assertTrue(asked[i] >= arrived.count(b"%d" % i))
        return connections, len(arrived) - count, s.resent

    def test_nothing_is_lost_at_qos_1(self):
        connections = again = resent = 0
        for seed in range(1, 61):
            a, b, c = self.run_one(seed)
            connections, again, resent = connections + a, again + b, resent + c
        # The trouble was real.
        self.assertTrue(connections > 300 and again > 50 and resent > 100,
                        (connections, again, resent))  # fmt: skip


class Sizes(unittest.TestCase):
    def test_queued_publishes_hold_no_payload(self):
        s = opened(make(window=4))
        made = []

        def payload():
            made.append(1)
            return b"x" * 500

        for _ in range(100):
            s.publish("t", payload)
        sent(s)
        self.assertEqual(len(made), 4)
        for slot in s._flying + s._waiting:
            self.assertTrue(slot.payload is payload)
        self.assertTrue(all(len(packet) < 300 for packet in s._control))
        self.assertEqual(packets.MAX_REMAINING, 268435455)


if __name__ == "__main__":
    unittest.main()
