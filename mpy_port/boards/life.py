"""What keeps a board alive: radio, watchdog and sleep, in one task beside the agent.

    board.life = Life(...)        mpy_port/start.py does the rest

`meet(agent)` comes before the agent runs, `run()` looks after them every LOOK_MS; `ended()` is
called when the agent has come to an end with all on flash, and sends a board that sleeps deep to
sleep.

Fields of "board" in the configuration, besides "wifi" and "i2c":

    watchdog_s   0 = none (default), else 4..8 on every chip, up to 120 on ESP32. The hardware
                 resets the board when it was not fed for so long; what feeds it is in watchdog.py
    sleep        {"mode": "light"} or {"mode": "deep", "every_s": 600, "windows": 1, "cap_s": 90}.
                 Both want "delivery": {"duty_s": ...}, which says how often to deliver.
                 deep: every_s from wake to wake; windows to sense in each; cap_s: longest wake
"""

import asyncio

from edge_agent.errors import ConfigError
from mpy_port.boards.sleep import Kept, Wake, light_ms, pack
from mpy_port.boards.watchdog import FEED_MS, Watchdog

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edge_agent.agent import Agent
    from edge_agent.config import Config
    from edge_agent.interfaces import Clock
    from mpy_port.boards.radio import Air, WifiLink

LOOK_MS = 250
_URGENT = 0
# Longest pause between attempts to connect (backoff.py), an attempt, and some more.
_LINK_MS = 900000 + 120000


class Power:
    """Checked "board.sleep" and "board.watchdog_s". mode: "none", "light" or "deep"."""

    def __init__(self, config: "Config", modes: "tuple[str, ...]", longest_s: int) -> None:
        fields = config.board
        for name in fields:
            if name not in ("wifi", "i2c", "sleep", "watchdog_s"):
                raise ConfigError(
                    "unknown field", "board." + str(name), "Known: wifi, i2c, sleep, watchdog_s"
                )
        self.watchdog_s = _int(fields, "board.watchdog_s", 0, longest_s, 0)
        if 0 < self.watchdog_s < 4:
            raise ConfigError("is shorter than a model may run", "board.watchdog_s", "0, or 4 up")
        about = fields.get("sleep", {"mode": "none"})
        if not isinstance(about, dict):
            raise ConfigError("must be an object", "board.sleep", 'Like {"mode": "light"}')
        for name in about:
            if name not in ("mode", "every_s", "windows", "cap_s"):
                raise ConfigError("unknown field", "board.sleep." + str(name))
        self.mode = about.get("mode")
        if self.mode not in modes:
            raise ConfigError(
                "%r is nothing this board can do" % (self.mode,),
                "board.sleep.mode",
                "Use " + " or ".join(modes),
            )
        self.every_ms = 1000 * _int(about, "board.sleep.every_s", 10, 86400, 600)
        self.windows = _int(about, "board.sleep.windows", 1, 1000, 1)
        self.cap_ms = 1000 * _int(about, "board.sleep.cap_s", 5, 3600, 90)
        if self.mode != "none" and not config.duty_s:
            raise ConfigError(
                "must not be 0 for a board that sleeps",
                "delivery.duty_s",
                "Write how many seconds may pass between deliveries",
            )


def _int(fields: "dict[str, Any]", where: str, low: int, high: int, default: int) -> int:
    value = fields.get(where.rpartition(".")[2], default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError("must be a whole number %d..%d" % (low, high), where)
    return value


class Life:
    """machine: the module. memory: RTC memory, `memory()` and `memory(bytes)`; None without.
    rtc_ms(): what the RTC counts, ms. kept: of the sleep before, see sleep.restore."""

    def __init__(
        self,
        machine: "Any",
        clock: "Clock",
        power: Power,
        config: "Config",
        air: "Air | None" = None,
        link: "WifiLink | None" = None,
        memory: "Any" = None,
        rtc_ms: "Any" = None,
        kept: "Kept | None" = None,
        chance: "Any" = None,
    ) -> None:
        self._machine = machine
        self._clock = clock
        self._power = power
        self._air, self._link = air, link
        self._memory, self._rtc_ms = memory, rtc_ms
        self._kept = kept
        self._turn_ms, self._chance = 1000 * config.duty_s, chance
        self._agent: Any = None
        self._fed_at = 0
        limits = {"link": max(_LINK_MS, 2000 * config.duty_s)}
        if config.stall_s:
            limits["sense"] = 3000 * config.stall_s + 60000
        self._limits = limits
        self._dog: Any = None
        self.wake: Wake | None = None
        if power.mode == "deep":
            # Nothing is gained by waiting for more records in so short a life.
            config.sync = "every"
            if air is not None:
                air.may = False
        self._begin()

    def _begin(self) -> None:
        """What counts from now on, by the clock as it stands."""
        power, now = self._power, self._clock.uptime_ms()
        self.watchdog = Watchdog(self._limits, now)
        if power.mode == "deep":
            self.wake = Wake(
                power.every_ms,
                power.windows,
                self._turn_ms,
                power.cap_ms,
                self._kept,
                now,
                self._chance,
            )

    def meet(self, agent: "Agent") -> None:
        """Before the agent runs: afterwards its deadlines count on the clock."""
        self._agent = agent
        if self._kept is not None and agent.journal.boot != self._kept.boot:
            self._kept = None  # another journal: a new boot, whose uptime begins now
            restart: Any = self._clock
            restart.restart()
            self._begin()

    async def run(self) -> None:
        """Until the agent ends. The first look is at once."""
        agent = self._agent
        if self._air is not None:
            self._air.on_event = agent.report
            if self._power.mode == "none":
                self._air.start()
        if self._power.watchdog_s and self._dog is None:
            self._dog = self._machine.WDT(timeout=1000 * self._power.watchdog_s)
        while True:
            try:
                self._look(self._clock.uptime_ms())
            except Exception as error:
                # The radio must be looked after whatever happens; an unfed watchdog helps.
                agent.report("error", "life-failed", {"error": repr(error)})
            await asyncio.sleep(LOOK_MS / 1000)

    def signs(self) -> "dict[str, Any]":
        """What shows progress, see watchdog.py."""
        core = self._agent.core
        link = core.delivery.link
        held = self._air is not None and not self._air.may
        up = link.state == "up"
        return {
            "sense": (core.counters.get("windows", 0), core.counters.get("sensor-error", 0)),
            # While it is up, MQTT's own keepalive watches it.
            "link": None if up or held else (core.delivery.counters.get("connects", 0), link.state),
        }

    def _look(self, now: int) -> None:
        if self._air is not None:
            self._air.look()
        if self._dog is not None and now - self._fed_at >= min(
            FEED_MS, 500 * self._power.watchdog_s
        ):
            self._fed_at = now
            if self.watchdog.feed(self.signs(), now):
                self._dog.feed()
        if self.wake is not None:
            self._deep(self.wake, now)
        elif self._power.mode == "light":
            self._light(now)

    def _served(self) -> bool:
        """The link was up, brought what there was, and was let go of by us."""
        core = self._agent.core
        link = core.delivery.link
        if link.state != "waiting" or not link.number or not core.drained():
            return False
        return self._link is None or self._link.rested

    def _deep(self, wake: Wake, now: int) -> None:
        agent = self._agent
        facts = agent.journal.stats()
        sensed = agent.core.counters.get("windows", 0)
        if wake.look(sensed, facts["pending"][_URGENT] > 0, self._served(), now):
            agent.stop()
        if self._air is not None:
            self._air.may = wake.may_connect()

    def _light(self, now: int) -> None:
        if self._air is not None and self._served():
            self._air.stop()
        due = getattr(self._agent.board.sensor, "due_ms", None)
        deadline = self._agent.core.next_wake()
        ms = light_ms(
            self._air is not None and not self._air.is_off(),
            None if due is None else due(),
            None if deadline is None else deadline - now,
            1000 * self._power.watchdog_s // 2 or 60000,
        )
        if ms:
            self._machine.lightsleep(ms)

    def ended(self) -> None:
        """The agent has ended, all is on flash: a board that sleeps deep does it now."""
        if self._air is not None:
            self._air.stop()
        if self.wake is None or self._agent is None:
            return
        journal = self._agent.journal
        now = self._clock.uptime_ms()
        ms = self.wake.ended(now)
        wakes = self._kept.wakes if self._kept is not None else 0
        kept = Kept(journal.boot, journal.age_base_s, now, self.wake.turn_ms, wakes)
        self._memory.memory(pack(kept, self._rtc_ms(), ms))
        self._machine.deepsleep(ms)
