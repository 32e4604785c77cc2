"""The emulated boards of hw_tests: what a stock board has, plus knobs for tests.

    board = qemu_board(config, domain, sensor)

`broker.host` says how the broker is reached:

    uart:1            a transparent modem on machine.UART(1)
    modem:1:NUMBER    a modem with AT commands on machine.UART(1), which dials NUMBER
    anything else     sockets

`WindowFile` replays recorded windows, so that what is sensed can be repeated. As a kind of
sensor of a configuration: {"kind": "windows", "path": FILE, "count": N, "gap_ms": MS}.
"""

import asyncio
import os
from array import array

from edge_agent.errors import ConfigError, SensorError
from edge_agent.interfaces import Board, Sensor, Window
from mpy_port.clock import TicksClock
from mpy_port.crypto import StockCrypto, StockEntropy
from mpy_port.flash_store import FlashStore
from mpy_port.unload import unload
from mpy_port.wiring import TfliteModel, check_model, mqtt_link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edge_agent.config import Config
    from edge_agent.domain import Domain
    from edge_agent.interfaces import Clock, Crypto, Link, Model

_RX_BYTES = 2048
_PUBACK_MS = 5000


def uart(number: int) -> "Any":
    machine: Any = __import__("machine")
    return machine.UART(number, 115200, timeout=0, timeout_char=0, rxbuf=_RX_BYTES)


def qemu_link(config: "Config", crypto: "Crypto", clock: "Clock") -> "Link":
    """The link that `broker.host` asks for. ConfigError when it makes no sense."""
    way, _, rest = config.broker.host.partition(":")
    if way not in ("uart", "modem"):
        return mqtt_link(config, crypto, clock, puback_ms=_PUBACK_MS)
    from mpy_port.mqtt.serial import SerialLink

    number, _, dial = rest.partition(":")
    try:
        line = uart(int(number))
    except ValueError:
        raise ConfigError(
            config.broker.host + " is no serial line", "broker.host", "Like uart:1 or modem:1:5551"
        )
    if way == "uart":
        dial = ""
    return mqtt_link(
        config,
        crypto,
        clock,
        SerialLink,
        uart=line,
        dial=dial,
        guard_ms=300,
        puback_ms=_PUBACK_MS,
    )


class WindowFile(Sensor):
    """`count` windows out of a file of little-endian int16 samples, over and over.

    length: samples of a window. gap_ms: pause before each. first: number of the first one,
    which goes into their keys.
    """

    def __init__(self, path: str, length: int, count: int, gap_ms: int = 0, first: int = 0) -> None:
        self._path = path
        self._bytes = 2 * length
        self._samples = array("h", bytes(self._bytes))
        self._next, self._end = first, first + count
        self._gap_s = gap_ms / 1000
        try:
            self._held = os.stat(path)[6] // self._bytes
        except OSError as error:
            raise SensorError("cannot be read (%s)" % error, path, "Copy the recording there")
        if not self._held:
            raise SensorError("holds no window", path, "Copy the recording again")

    async def read(self) -> "Window | None":
        if self._next >= self._end:
            return None
        number = self._next
        self._next += 1
        if self._gap_s:
            await asyncio.sleep(self._gap_s)
        with open(self._path, "rb") as file:
            file.seek(number % self._held * self._bytes)
            _fill(file, self._samples)
        return Window(self._samples, (), "w%d" % number)


def _fill(file: "Any", samples: "Any") -> None:
    file.readinto(samples)  # both machines are little-endian, as the file is


def qemu_board(
    config: "Config",
    domain: "Domain",
    sensor: "Sensor",
    model: "Model | None" = None,
    link: "Link | None" = None,
) -> Board:
    """A Board from a configuration. ConfigError, StoreError or ModelError when a part fails."""
    clock, crypto = TicksClock(), StockCrypto()
    if model is None:
        found = TfliteModel(config.model)
        check_model(found, domain, config.model)
        model = found
        unload()
    return Board(
        clock,
        StockEntropy(),
        crypto,
        FlashStore(config.journal_path),
        link if link is not None else qemu_link(config, crypto, clock),
        model,
        sensor,
    )


def make_board(config: "Config", domain: "Domain") -> Board:
    """The board with the sensor that the configuration names. ConfigError, SensorError."""
    about = config.sensor
    if about.get("kind") != "windows":
        raise ConfigError(
            "%r is no sensor of this board" % about.get("kind"), "sensor.kind", 'Write "windows"'
        )
    length = domain.features.window * domain.features.axes
    sensor = WindowFile(
        str(about.get("path")), length, about.get("count", 1 << 30), about.get("gap_ms", 1000)
    )
    return qemu_board(config, domain, sensor)
