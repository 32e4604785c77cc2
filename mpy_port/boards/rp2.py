"""Pico W and Pico 2 W (RP2040, RP2350): Wi-Fi, light sleep, watchdog of 8 s at most.

    {"board": {"wifi": {"ssid": "plant", "password": "..."}, "sleep": {"mode": "light"}},
     "sensor": {"kind": "adc", "pins": [26], "rate_hz": 50}, "delivery": {"duty_s": 600}}

No deep sleep: these chips have no RTC memory, and MicroPython's `deepsleep` ends in a reset
that forgets boot and uptime; light sleep keeps RAM. Tried with a `machine` and a
`network` of the tests, never on silicon.
"""

from mpy_port.boards.wired import wifi_board

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edge_agent.config import Config
    from edge_agent.domain import Domain
    from edge_agent.interfaces import Board

_WATCHDOG_S = 8


def make_board(config: "Config", domain: "Domain", **parts: "Any") -> "Board":
    """The board that the configuration describes; see wired.wifi_board for `parts`."""
    machine: Any = __import__("machine")
    network: Any = __import__("network")
    return wifi_board(config, domain, machine, network, ("none", "light"), _WATCHDOG_S, **parts)
