"""The asyncio driver on both interpreters, with a link that ends in a dictionary."""

import asyncio
import time
import unittest
from array import array

from rig import CRYPTO, Gateway, RamStore, Rand, make_config, make_domain

from edge_agent import agent as driver
from edge_agent import backoff, frame
from edge_agent.agent import Agent
from edge_agent.errors import ConfigError, LinkError, ModelError, SensorError, StoreError
from edge_agent.head import Row, encode_row
from edge_agent.interfaces import Board, Clock, Link, Model, ModelOutput, Sensor, Window


class RealClock(Clock):
    def __init__(self):
        self._ms = getattr(time, "ticks_ms", None) or (lambda: time.monotonic_ns() // 1000000)
        self._start = self._ms()

    def uptime_ms(self):
        return self._ms() - self._start

    def utc_s(self):
        return 0


class LoopLink(Link):
    """A broker and a gateway inside the process. `down()` cuts the connection."""

    def __init__(self, gateway):
        self.gateway = gateway
        self.refuse = 0  # connects that fail first
        self.swallow = 0  # outcomes that get no PUBACK before the link is cut
        self.inbox = []
        self.up = False
        self.news = None
        self.connects = 0
        self.sent = []
        self.states = []
        self.hang = False

    async def connect(self):
        self.connects += 1
        self.news = asyncio.Event()
        await asyncio.sleep(0)
        if self.hang:
            await asyncio.sleep(60)
        if self.refuse:
            self.refuse -= 1
            raise LinkError("broker", "not now")
        self.up = True
        return True

    def down(self):
        self.up = False
        self.news.set()

    async def publish(self, topic, payload, qos=1, retain=False):
        if not self.up:
            raise LinkError("network", "not connected")
        data = payload() if callable(payload) else payload
        self.sent.append(data)
        await asyncio.sleep(0)
        if topic.endswith("/state"):
            self.states.append(data)
            return
        if self.swallow and len(data) > 120:
            self.swallow -= 1
            self.down()
            raise LinkError("broker", "gone")
        for answer in self.gateway.take(data):
            self.inbox.append((topic[:-2] + "ack", answer))
            self.news.set()

    async def receive(self):
        while not self.inbox:
            if not self.up:
                raise LinkError("broker", "gone")
            await self.news.wait()
            self.news.clear()
        return self.inbox.pop(0)

    async def disconnect(self):
        if self.up:
            self.down()


class FixedModel(Model):
    model_id = b"modelid1"
    input_length = 4
    labels = 3

    def __init__(self):
        self.failures = 0

    def run(self, features):
        if self.failures:
            self.failures -= 1
            raise ModelError("operator 99", "model.tflite")
        return ModelOutput(bytes([0, 200, 0]), bytes(range(64)), 0)


class Steps(Sensor):
    """Windows, errors and pauses (seconds) from a list."""

    def __init__(self, steps):
        self.steps = steps
        self.closed = False

    async def read(self):
        while self.steps:
            step = self.steps.pop(0)
            if isinstance(step, Exception):
                raise step
            if isinstance(step, float):
                await asyncio.sleep(step)
            elif step is None:
                return None
            else:
                return Window(array("h", [1, 2, 3, 4]), (), step)
        return None

    async def close(self):
        self.closed = True


class World:
    def __init__(self, steps, store=None, config=None, **more):
        self.gateway = Gateway()
        self.link = LoopLink(self.gateway)
        self.store = store if store is not None else RamStore()
        self.clock = RealClock()
        self.sensor = Steps(list(steps))
        self.model = FixedModel()
        self.ledger = []
        self.events = []
        self.board = Board(
            self.clock, Rand(5), CRYPTO, self.store, self.link, self.model, self.sensor
        )
        self.config = config or make_config(
            sensor={"kind": "x", "stall_s": 0}, delivery={"pace_per_s": 10000}
        )
        self.agent = Agent(
            self.board,
            self.config,
            make_domain(),
            on_committed=lambda key, seq, data: self.ledger.append((key, seq, data)),
            on_event=self.events.append,
            **more,
        )

    def run(self, drain=True, limit_s=20):
        async def limited():
            await asyncio.wait_for(self.agent.run(drain), limit_s)

        asyncio.run(limited())

    def names(self):
        return [e.name for e in self.events]

    def arrived(self):
        return sorted(bytes(f) for f in self.gateway.held.values())

    def ledgered(self):
        return sorted(data for _, _, data in self.ledger)


KEYS = ["w%d" % i for i in range(20)]


class TestAgent(unittest.TestCase):
    def setUp(self):
        # Pauses are counted in test_delivery; here they would only take time.
        self.ladder = backoff.LADDERS["broker"]
        self.retry = driver.SENSOR_RETRY_S
        backoff.LADDERS["broker"] = (60, 120)
        driver.SENSOR_RETRY_S = (0.05, 1)

    def tearDown(self):
        backoff.LADDERS["broker"] = self.ladder
        driver.SENSOR_RETRY_S = self.retry

    def test_every_window_arrives_and_the_link_is_left_politely(self):
        w = World(KEYS)
        w.run()
        self.assertEqual([key for key, _, _ in w.ledger], KEYS)
        self.assertEqual(w.arrived(), w.ledgered())
        self.assertEqual(w.link.states, [b"online", b"offline"])
        self.assertTrue(w.sensor.closed)
        self.assertFalse(w.link.up)

    def test_the_account_is_what_left(self):
        w = World(KEYS)
        w.run()
        totals = w.agent.egress.totals
        self.assertEqual(sum(totals[k][0] for k in totals), len(w.link.sent))
        self.assertEqual(sum(totals[k][1] for k in totals), sum(len(d) for d in w.link.sent))
        self.assertEqual(totals["outcome"][0], 20)
        again = World([], w.store)
        self.assertEqual(again.agent.egress.totals, totals)

    def test_broker_away_at_first_and_cut_on_the_way(self):
        w = World(KEYS)
        w.link.refuse = 1
        w.link.swallow = 1
        w.run()
        self.assertEqual(w.arrived(), w.ledgered())
        self.assertEqual(len(w.ledger), 20)
        self.assertIn("link-down", w.names())
        self.assertEqual(w.link.connects, 3)
        self.assertLess(w.gateway.duplicates, 9)

    def test_adapters_that_fail_for_a_while(self):
        w = World(KEYS[:5] + [SensorError("no answer", "i2c"), OSError(5)] + KEYS[5:])
        w.model.failures = 3
        w.run()
        self.assertEqual(len(w.gateway.held), 17)
        self.assertEqual(w.agent.core.counters["sensor-error"], 2)
        self.assertEqual(w.agent.core.counters["model-error"], 3)

    def test_a_full_disk_for_a_while(self):
        w = World(KEYS[:10] + [0.3] + KEYS[10:])
        w.store.error = StoreError("no space left", "n1", "", 28)

        async def work():
            running = asyncio.create_task(w.agent.run(True))
            await asyncio.sleep(0.1)
            self.assertEqual(w.gateway.held, {})
            self.assertEqual(w.ledger, [])
            w.store.error = None
            await asyncio.wait_for(running, 15)

        asyncio.run(work())
        self.assertEqual(len(w.ledger), 20)
        self.assertEqual(w.arrived(), w.ledgered())
        self.assertIn("sync-failed", w.names())

    def test_stopped_in_the_middle_and_started_again(self):
        w = World(KEYS[:10] + [30.0])
        w.link.refuse = 99

        async def work():
            running = asyncio.create_task(w.agent.run())
            await asyncio.sleep(0.2)
            w.agent.stop()
            await asyncio.wait_for(running, 15)

        asyncio.run(work())
        self.assertEqual(len(w.ledger), 10)
        again = World(KEYS[10:], w.store)
        again.run()
        self.assertEqual(again.arrived(), sorted(w.ledgered() + again.ledgered()))
        self.assertEqual(again.agent.journal.boot, 2)

    def test_stopped_while_connecting(self):
        w = World([30.0])
        w.link.hang = True

        async def work():
            running = asyncio.create_task(w.agent.run())
            await asyncio.sleep(0.1)
            w.agent.stop()
            await asyncio.wait_for(running, 15)

        asyncio.run(work())
        self.assertEqual(w.agent.status()["delivery"]["link"], "idle")

    def test_what_is_no_edge_error_is_shown_and_survived(self):
        w = World(KEYS[:3])
        real = w.board.model.run
        w.board.model.run = lambda features: real(features) if w.ledger else 1 // 0

        async def work():
            running = asyncio.create_task(w.agent.run(True))
            await asyncio.wait_for(running, 15)

        asyncio.run(work())
        self.assertIn("effect-failed", w.names())
        self.assertEqual(w.agent.core.counters["model-error"], 3)

    def test_boxes_reach_their_handlers(self):
        seen = []

        def handler(body):
            seen.append(body)
            if body == b"bad":
                raise ValueError("no use")

        w = World([0.1], handlers={3: handler})
        topic = w.config.topic("box")
        for kind, body in ((3, b"good"), (3, b"bad"), (9, b"?")):
            w.link.inbox.append((topic, w.gateway.box(kind, body)))
        w.run()
        self.assertEqual(seen, [b"good", b"bad"])
        self.assertIn("box-failed", w.names())
        self.assertIn("box-unknown", w.names())

    def test_another_model_in_the_middle(self):
        class Second(FixedModel):
            model_id = b"modelid2"

            def run(self, features):
                return ModelOutput(bytes([200, 0, 0]), bytes(range(64)), 0)

        w = World(KEYS[:5] + [0.3] + KEYS[5:], handlers={3: lambda _: w.agent.use_model(Second())})
        w.link.inbox.append((w.config.topic("box"), w.gateway.box(3, b"the second")))
        w.run()
        self.assertEqual(w.arrived(), w.ledgered())
        opened = [frame.open_frame(data, w.gateway.ring, frame.UP) for _, _, data in w.ledger]
        said = [(o.message.outcome.model, o.message.outcome.label) for o in opened]
        self.assertEqual(len(said), 20)
        self.assertEqual(sorted(set(said)), [(b"modelid1", 1), (b"modelid2", 0)])
        self.assertEqual(said, sorted(said))

    def test_mail_outlives_a_boot(self):
        """Rows through the link, two slots in the store, hellos that say so, the next boot."""
        rows = [
            encode_row(Row(5, b"", i, 3, bytes(64), 1000 if i == 2 else 0, 1 << 10, 10))
            for i in range(3)
        ]
        more = {"peers": {}, "sensor": {"kind": "x", "stall_s": 0}}
        w = World([0.1] + KEYS[:3] + [0.9] + KEYS[3:6], config=make_config(**more))

        async def work():
            running = asyncio.create_task(w.agent.run(True))
            while not w.agent.core.delivery.gateway.any_answer():
                await asyncio.sleep(0.01)
            for number in (1, 2, 2, 3):
                body = rows[number - 1]
                w.link.inbox.append((w.config.topic("box"), w.gateway.box(1, body, number)))
            w.link.news.set()
            await asyncio.wait_for(running, 15)

        asyncio.run(work())
        hello = w.gateway.hellos[-1]
        self.assertEqual((hello.taken, hello.head), (3, 5))
        self.assertEqual(w.agent.status()["mail"]["counters"]["duplicates"], 1)
        self.assertIn("head-applied", w.names())
        opened = [frame.open_frame(data, w.gateway.ring, frame.UP) for _, _, data in w.ledger]
        said = [(o.message.outcome.head, o.message.outcome.label) for o in opened]
        self.assertEqual(said[-1], (5, 2))
        again = World(KEYS[:1], w.store, config=make_config(**more))
        again.run()
        hello = again.gateway.hellos[0]
        self.assertEqual((hello.taken, hello.head), (3, 5))

    def test_settings_outlive_a_boot(self):
        w = World([0.1])
        w.link.inbox.append((w.config.topic("cfg"), w.gateway.cfg(4, {8: 77, 3: 500})))
        w.run()
        self.assertEqual((w.config.unsure_below, w.config.pace_per_s), (77, 500))
        again = World([], w.store)
        self.assertEqual((again.config.unsure_below, again.config.pace_per_s), (77, 500))
        self.assertEqual(again.agent.core.cfg_version, 4)
        for name in ("settings0", "settings1"):
            if name in w.store.files:
                w.store.files[name][9] ^= 1
        damaged = World([], w.store)
        self.assertEqual(damaged.config.unsure_below, 0)

    def test_feedback_by_name(self):
        w = World(["w"])
        w.run()
        again = World([0.1], w.store)
        again.agent.feedback(bytes(16), "corrected", "run", key="ticket")
        again.run()
        self.assertEqual([key for key, _, _ in again.ledger], ["ticket"])
        with self.assertRaises(ValueError):
            again.agent.feedback(bytes(16), "nonsense", "run")

    def test_status_during_and_after(self):
        w = World(KEYS)
        self.assertEqual(w.agent.status()["journal_stats"]["boot"], 1)
        w.run()
        w.store.files = {}  # closed: nothing is read any more
        status = w.agent.status()
        self.assertEqual(status["egress"]["outcome"][0], 20)
        self.assertEqual(status["delivery"]["counters"]["confirmed"], 20)

    def test_another_domain_than_the_enrolled_one(self):
        config = make_config(domain_id="ff" * 8)
        with self.assertRaises(ConfigError) as caught:
            World([], config=config)
        self.assertEqual(caught.exception.where, "domain")
