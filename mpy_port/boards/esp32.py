"""ESP32, ESP32-C3, ESP32-S3 and their like: Wi-Fi, light and deep sleep, watchdog.

    {"board": {"wifi": {"ssid": "plant", "password": "..."},
               "sleep": {"mode": "deep", "every_s": 600}, "watchdog_s": 60},
     "sensor": {"kind": "bme280", "i2c": {"scl": 9, "sda": 8}},
     "delivery": {"duty_s": 3600}}

RTC memory keeps boot, uptime and turn over a deep sleep; it is read and emptied before anything
else. Tried with a `machine` and a `network` of the tests, never on silicon.
"""

from mpy_port.boards.sleep import restore
from mpy_port.boards.wired import rtc_ms, wifi_board

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edge_agent.config import Config
    from edge_agent.domain import Domain
    from edge_agent.interfaces import Board
    from mpy_port.boards.sleep import Kept

_WATCHDOG_S = 120


def woken(machine: "Any", memory: "Any") -> "Kept | None":
    """What a deep sleep kept; None after any other reset. It counts once."""
    data = bytes(memory.memory())
    if data:
        memory.memory(b"")
    if machine.reset_cause() != machine.DEEPSLEEP_RESET:
        return None
    return restore(data, rtc_ms())


def make_board(config: "Config", domain: "Domain", **parts: "Any") -> "Board":
    """The board that the configuration describes; see wired.wifi_board for `parts`."""
    machine: Any = __import__("machine")
    network: Any = __import__("network")
    memory = machine.RTC()
    kept = woken(machine, memory)
    modes = ("none", "light", "deep")
    return wifi_board(config, domain, machine, network, modes, _WATCHDOG_S, memory, kept, **parts)
