"""ESP32 and RP2 with a `machine` and a `network` of ours: radio, watchdog, sleep, a whole wake."""

import asyncio
import sys
import unittest
from array import array

from fake_board import Machine, Network, Slept
from rig import Gateway, RamStore, Rand, make_config, make_domain
from test_agent import FixedModel, LoopLink, Steps

from edge_agent import connection
from edge_agent.agent import Agent
from edge_agent.errors import ConfigError, LinkError
from edge_agent.interfaces import Clock, Window
from mpy_port import start
from mpy_port.boards import esp32, life, radio, rp2, wifi, wired
from mpy_port.boards.radio import Air, Radio, Settings, WifiLink
from mpy_port.clock import EPOCH_S

WIFI = {"ssid": "plant", "password": "secret-word"}


class HandClock(Clock):
    def __init__(self):
        self.now = 0

    def uptime_ms(self):
        return self.now

    def utc_s(self):
        return 0


def windows(count):
    """What test_agent.Steps gives: any window of the rig's domain."""
    n = make_domain().features
    return [Window(array("h", [1] * (n.window * n.axes)), (), "w%d" % i) for i in range(count)]


def events_of(into):
    return lambda event: into.append(event.name)


class RadioTest(unittest.TestCase):
    def test_what_ports_say_in_one_language(self):
        for port, codes in (
            ("esp32", {202: "password", 201: "absent", 203: "failed", 204: "failed", 1001: "busy"}),
            ("rp2", {-3: "password", -2: "absent", -1: "failed", 1: "busy", 2: "busy"}),
        ):
            network = Network(port)
            driver = Radio(network, Settings(WIFI))
            for code in codes:
                network.wlan.code = code
                self.assertEqual(driver.says(), codes[code])
            network.wlan.code = 1010
            self.assertEqual(driver.says(), wifi.ADDRESS)

    def test_the_first_attempt_sets_the_radio_up_and_later_ones_do_not(self):
        network = Network()
        driver = Radio(network, Settings(WIFI))
        self.assertEqual(network.wlan.calls, [])
        driver.do("join")
        driver.do("leave")
        driver.do("join")
        calls = ["on", "reconnects=0", "pm=1", "connect", "disconnect", "connect"]
        self.assertEqual(network.wlan.calls, calls)
        self.assertEqual(network.wlan.asked, ("plant", "secret-word"))
        driver.do("off")
        self.assertEqual(network.wlan.calls[-2:], ["disconnect", "off"])

    def test_a_driver_that_fails_is_an_attempt_that_failed(self):
        network = Network()
        network.wlan.broken = True
        Radio(network, Settings({"ssid": "open", "password": ""})).do("join")
        self.assertEqual(network.wlan.calls, ["on", "reconnects=0"])

    def test_settings(self):
        for fields, where in (
            (None, "board.wifi"),
            ({}, "board.wifi.ssid"),
            ({"ssid": "x" * 33, "password": ""}, "board.wifi.ssid"),
            ({"ssid": "plant"}, "board.wifi.password"),
            ({"ssid": "plant", "password": "tiny"}, "board.wifi.password"),
            ({"ssid": "plant", "password": "", "chanel": 1}, "board.wifi.chanel"),
            ({"ssid": "plant", "password": "", "join_s": 1}, "board.wifi.join_s"),
            ({"ssid": "plant", "password": "", "power_save": 1}, "board.wifi.power_save"),
        ):
            with self.assertRaises(ConfigError) as caught:
                Settings(fields)
            self.assertEqual(caught.exception.where, where)
            self.assertFalse("tiny" in str(caught.exception))
        self.assertFalse("secret-word" in repr(Settings(WIFI)))


class LinkTest(unittest.TestCase):
    def setUp(self):
        self.looks = radio.LOOK_MS, radio.WAIT_MS
        radio.LOOK_MS = 1

    def tearDown(self):
        radio.LOOK_MS, radio.WAIT_MS = self.looks

    def make(self):
        network, clock = Network(), HandClock()
        driver = Radio(network, Settings(WIFI))
        air = Air(driver, clock, Rand(), 20000)
        inner = LoopLink(Gateway())
        return network.wlan, clock, air, WifiLink(inner, air), inner

    def test_a_broker_that_is_gone_for_thirty_days_never_costs_the_radio(self):
        wlan, clock, air, link, inner = self.make()
        wlan.code = 1010
        inner.refuse = 100

        async def story():
            air.start()
            for _ in range(100):
                air.look()
                clock.now += 30 * 86400000 // 100
                with self.assertRaises(LinkError) as caught:
                    await link.connect()
                self.assertEqual(caught.exception.reason, "broker")
                await link.disconnect()
            self.assertTrue(await link.connect())

        asyncio.run(story())
        self.assertEqual(wlan.calls, ["on", "reconnects=0", "pm=1", "connect"])
        self.assertEqual((air.wifi.state, air.wifi.losses), (wifi.UP, 0))

    def test_without_a_network_connect_says_radio_and_why(self):
        wlan, clock, air, link, inner = self.make()
        wlan.code = 202
        told = []
        air.on_event = lambda level, name, fields: told.append((level, name))

        async def pass_time():
            while True:
                clock.now += 250
                air.look()
                await asyncio.sleep(0)

        async def story():
            passing = asyncio.create_task(pass_time())
            with self.assertRaises(LinkError) as caught:
                await link.connect()
            self.assertEqual(caught.exception.reason, "radio")
            self.assertTrue("password" in str(caught.exception))
            wlan.code = 1010
            await link.connect()
            passing.cancel()

        asyncio.run(story())
        self.assertEqual(inner.connects, 1)
        self.assertEqual(told, [("error", "wifi-password"), ("info", "wifi-up")])

    def test_only_a_session_that_we_ended_rested(self):
        wlan, clock, air, link, inner = self.make()
        wlan.code = 1010

        async def story():
            air.start()
            air.look()
            await link.connect()
            inner.down()
            with self.assertRaises(LinkError):
                await link.receive()
            await link.disconnect()
            self.assertFalse(link.rested)
            await link.connect()
            await link.disconnect()
            self.assertTrue(link.rested)

        asyncio.run(story())


class LifeTest(unittest.TestCase):
    """The whole agent on a board: what start.py does, again and again."""

    def setUp(self):
        self.kept = (radio.LOOK_MS, life.LOOK_MS, wired.FlashStore, wired.rtc_ms, esp32.rtc_ms)
        self.machine, self.network = Machine(), Network()
        self.store, self.gateway = RamStore(), Gateway()
        self.rtc = 1000
        radio.LOOK_MS = life.LOOK_MS = 5
        wired.FlashStore = lambda path: self.store
        wired.rtc_ms = esp32.rtc_ms = lambda: self.rtc
        self.domain = make_domain()
        self.events = []
        self.linger, connection.LINGER_MS = connection.LINGER_MS, 50

    def tearDown(self):
        radio.LOOK_MS, life.LOOK_MS, wired.FlashStore, wired.rtc_ms, esp32.rtc_ms = self.kept
        connection.LINGER_MS = self.linger
        for name in ("machine", "network"):
            if isinstance(sys.modules.get(name), (Machine, Network)):
                del sys.modules[name]

    def board(self, module, sensor, config, link=None):
        sys.modules["machine"], sys.modules["network"] = self.machine, self.network
        link = LoopLink(self.gateway) if link is None else link
        return module.make_board(config, self.domain, sensor=sensor, model=FixedModel(), link=link)

    def config(self, sleep, duty_s=3600, **more):
        board = {"wifi": WIFI, "sleep": sleep}
        for name in more:
            board[name] = more[name]
        return make_config(board=board, delivery={"duty_s": duty_s}, sensor={"kind": "x"})

    def live(self, board, config, seconds=None):
        """(agent, whether it fell asleep)."""
        agents = []

        async def story():
            agent = Agent(board, config, self.domain, on_event=events_of(self.events))
            agents.append(agent)
            ending = asyncio.create_task(self.end(agent, seconds)) if seconds else None
            await start.live(agent, board.life)
            if ending is not None:
                await ending

        try:
            asyncio.run(story())
        except Slept:
            return agents[0], True
        return agents[0], False

    async def end(self, agent, seconds):
        await asyncio.sleep(seconds)
        agent.stop()

    def test_three_wakes_are_one_boot(self):
        self.network.wlan.code = 1010
        deep = {"mode": "deep", "every_s": 600, "windows": 2, "cap_s": 5}
        uptimes = []
        for wake in range(3):
            config = self.config(deep)
            board = self.board(esp32, Steps(windows(2) + [5.0]), config)
            uptimes.append(board.clock.uptime_ms())
            self.assertEqual(self.machine.rtc_memory, b"")  # counts once
            agent, slept = self.live(board, config)
            self.assertTrue(slept, self.events)
            self.assertEqual((agent.journal.boot, agent.journal.next_seq), (1, 3 + 2 * wake))
            self.assertEqual(len(self.gateway.held), 2)
            # The first one delivered; until the next turn in an hour the radio stays off.
            self.assertEqual(board.life.wake.reason, "served" if wake == 0 else "enough")
            self.assertEqual(board.link._link.connects, 1 if wake == 0 else 0)
            self.assertTrue(590000 < self.machine.deep[wake] <= 600000)
            self.rtc += self.machine.deep[wake] + 7
        self.assertEqual(self.network.wlan.calls.count("connect"), 1)
        self.assertEqual(self.network.wlan.calls[-1], "off")
        self.assertTrue(uptimes[0] < 1000)
        self.assertTrue(uptimes[1] >= self.machine.deep[0] + 7, uptimes)
        self.assertTrue(uptimes[2] - uptimes[1] >= self.machine.deep[1] + 7, uptimes)
        # A reset of another kind is a new boot, whatever the memory says.
        self.machine.cause = self.machine.PWRON_RESET
        board = self.board(esp32, Steps(windows(2) + [5.0]), config)
        self.assertEqual(board.woken, (0, 0))
        agent, _ = self.live(board, config)
        self.assertEqual(agent.journal.boot, 2)

    def test_a_wake_on_another_journal_is_a_new_boot_with_an_uptime_of_its_own(self):
        self.network.wlan.code = 1010
        config = self.config({"mode": "deep", "every_s": 600, "cap_s": 5})
        self.live(self.board(esp32, Steps(windows(1) + [5.0]), config), config)
        self.rtc += self.machine.deep[0]
        self.store = RamStore()
        Agent(
            self.board(rp2, Steps([]), self.config({"mode": "none"})),
            self.config({"mode": "none"}),
            self.domain,
        ).journal.close()
        self.machine.cause = self.machine.DEEPSLEEP_RESET
        board = self.board(esp32, Steps(windows(1) + [5.0]), config)
        self.assertEqual(board.woken, (1, 0))
        board.woken = (7, 0)
        board.life._kept.boot = 7
        agent, _ = self.live(board, config)
        self.assertEqual(agent.journal.boot, 2)
        self.assertTrue(board.clock.uptime_ms() < 20000)
        # Of the other one's time nothing is left: it delivers at once, as a first wake does, and
        # sleeps no longer than from wake to wake.
        self.assertEqual(board.life.wake.reason, "served")
        self.assertTrue(590000 < self.machine.deep[-1] <= 600000, self.machine.deep)

    def test_a_wake_without_a_network_ends_at_its_cap_and_loses_nothing(self):
        deep = {"mode": "deep", "every_s": 600, "windows": 1, "cap_s": 5}
        config = self.config(deep)
        board = self.board(esp32, Steps(windows(1) + [60.0]), config)
        board.life.wake._cap = 300
        agent, slept = self.live(board, config)
        self.assertTrue(slept)
        self.assertEqual(board.life.wake.reason, "cap")
        self.assertEqual(agent.status()["journal_stats"]["pending"], [0, 1, 0])

    def test_light_sleep_only_with_the_radio_off(self):
        self.network.wlan.code = 1010
        config = self.config({"mode": "light"})
        sensor = Steps(windows(1) + [60.0])
        sensor.due_ms = lambda: 40000
        board = self.board(rp2, sensor, config)
        inner = board.link._link
        states = []
        nap = self.machine.lightsleep

        def lightsleep(ms):
            states.append((self.network.wlan.on, inner.up))
            nap(ms)

        self.machine.lightsleep = lightsleep
        self.live(board, config, 0.7)
        self.assertEqual(inner.connects, 1)
        self.assertTrue(states and set(states) == {(False, False)}, states)
        self.assertTrue(max(self.machine.light) <= 40000)

    def test_the_watchdog_is_fed_and_no_longer_when_the_sensor_hangs(self):
        self.network.wlan.code = 1010
        config = self.config({"mode": "none"}, 0, watchdog_s=8)
        board = self.board(rp2, Steps(windows(1) + [60.0]), config)
        board.life._fed_at = -100000
        agent, _ = self.live(board, config, 0.3)
        (dog,) = self.machine.dogs
        self.assertEqual(dog.timeout, 8000)
        self.assertTrue(dog.fed >= 1)
        fed, now = dog.fed, board.clock.uptime_ms()
        limit = 3000 * config.stall_s + 60000
        for later in range(now + 3000, now + limit + 20000, 3000):
            board.life._look(later)
        self.assertEqual(board.life.watchdog.stuck, "sense")
        self.assertTrue(fed < dog.fed <= fed + limit // 3000 + 1)

    def test_the_gateways_time_is_kept_by_the_rtc(self):
        clock = wired.BoardClock(self.machine)
        clock.set_utc_ms(1767225600000 + 3723000)  # 2026-01-01 01:02:03, a Thursday
        self.assertEqual(self.machine.set_to, (2026, 1, 1, 3, 1, 2, 3, 0))
        clock.set_utc_ms(5000)
        self.assertEqual(self.machine.set_to[0], 2026)
        self.assertTrue(EPOCH_S in (0, 946684800))

    def test_what_a_board_cannot_do_is_said(self):
        for module, sleep, duty, more, where in (
            (rp2, {"mode": "deep"}, 60, {}, "board.sleep.mode"),
            (esp32, {"mode": "deep"}, 0, {}, "delivery.duty_s"),
            (esp32, {"mode": "deep", "every_s": 1}, 60, {}, "board.sleep.every_s"),
            (esp32, {"mode": "deep", "evry_s": 60}, 60, {}, "board.sleep.evry_s"),
            (esp32, 7, 60, {}, "board.sleep"),
            (rp2, {"mode": "none"}, 0, {"watchdog_s": 60}, "board.watchdog_s"),
            (esp32, {"mode": "none"}, 0, {"watchdog_s": 1}, "board.watchdog_s"),
            (esp32, {"mode": "none"}, 0, {"wfi": {}}, "board.wfi"),
        ):
            with self.assertRaises(ConfigError) as caught:
                self.board(module, Steps([]), self.config(sleep, duty, **more))
            self.assertEqual(caught.exception.where, where)


if __name__ == "__main__":
    unittest.main()
