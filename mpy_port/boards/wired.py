"""What the boards with a radio have in common: from a configuration to a Board with a life.

Clock: uptime that goes on after a deep sleep, and a time of day that the gateway's acks
set and the RTC keeps.
"""

import time

from edge_agent.interfaces import Board, utc_plausible
from mpy_port.boards.life import Life, Power
from mpy_port.boards.radio import Air, Radio, Settings, WifiLink
from mpy_port.clock import EPOCH_S, TicksClock
from mpy_port.crypto import StockCrypto, StockEntropy
from mpy_port.flash_store import FlashStore
from mpy_port.unload import unload
from mpy_port.wiring import TfliteModel, check_model, mqtt_link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edge_agent.config import Config
    from edge_agent.domain import Domain
    from edge_agent.interfaces import Model, Sensor
    from mpy_port.boards.sleep import Kept


class BoardClock(TicksClock):
    """machine: for its RTC. start_ms: uptime to begin with."""

    def __init__(self, machine: "Any", start_ms: int = 0) -> None:
        super().__init__()
        self._machine = machine
        self._uptime = start_ms

    def restart(self) -> None:
        """Begin a boot now."""
        self._uptime = 0

    def set_utc_ms(self, utc_ms: int) -> None:
        """Set the RTC, so that the time of day survives a sleep."""
        utc_s = utc_ms // 1000
        if utc_plausible(utc_s):
            year, month, day, hour, minute, second, weekday = time.gmtime(utc_s - EPOCH_S)[:7]
            self._machine.RTC().datetime((year, month, day, weekday, hour, minute, second, 0))


def rtc_ms() -> int:
    """The RTC in milliseconds of its epoch; it goes on in deep sleep."""
    ns = getattr(time, "time_ns", None)
    return int(ns()) // 1000000 if ns is not None else int(time.time()) * 1000


def wifi_board(
    config: "Config",
    domain: "Domain",
    machine: "Any",
    network: "Any",
    modes: "tuple[str, ...]",
    watchdog_s: int,
    memory: "Any" = None,
    kept: "Kept | None" = None,
    sensor: "Sensor | None" = None,
    model: "Model | None" = None,
    link: "Any" = None,
) -> Board:
    """A Board with a life. ConfigError, SensorError, StoreError or ModelError when a part fails.

    modes: of sleep. watchdog_s: longest the hardware takes. sensor, model, link: instead of
    those that the configuration names.
    """
    power = Power(config, modes, watchdog_s)
    settings = Settings(config.board.get("wifi"))
    clock = BoardClock(machine, kept.uptime_ms if kept is not None else 0)
    crypto, entropy = StockCrypto(), StockEntropy()
    air = Air(Radio(network, settings), clock, entropy, settings.join_ms)
    if sensor is None:
        from mpy_port.sensors import open_sensor

        sensor = open_sensor(config, domain, machine)
    if model is None:
        found = TfliteModel(config.model)
        check_model(found, domain, config.model)
        model = found
        unload()
    over = WifiLink(link if link is not None else mqtt_link(config, crypto, clock), air)
    store = FlashStore(config.journal_path)
    board = Board(clock, entropy, crypto, store, over, model, sensor)
    board.life = Life(machine, clock, power, config, air, over, memory, rtc_ms, kept, air.chance)
    if kept is not None:
        board.woken = (kept.boot, kept.base_s)
    return board
