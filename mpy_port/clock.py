"""Clock of a board: ticks that wrap, extended, and a time of day that may be unknown."""

import time

from edge_agent.interfaces import Clock, utc_plausible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TIME: "Any" = time
# Ports count seconds from 1970 or from 2000; only this module knows.
EPOCH_S = 946684800 if time.gmtime(0)[0] == 2000 else 0


class TicksClock(Clock):
    """Uptime from `time.ticks_ms`, which wraps after 6 to 12 days.

    Must be read at least every 3 days, which any keepalive does. On a host without
    `ticks_ms` (CPython) it reads the monotonic clock.
    """

    def __init__(self) -> None:
        self._ticks = getattr(time, "ticks_ms", None)
        self._last = self._read()
        self._uptime = 0

    def _read(self) -> int:
        if self._ticks is None:
            return time.monotonic_ns() // 1000000
        return int(self._ticks())

    def uptime_ms(self) -> int:
        now = self._read()
        passed = now - self._last if self._ticks is None else _TIME.ticks_diff(now, self._last)
        if passed > 0:
            self._uptime += passed
            self._last = now
        return self._uptime

    def utc_s(self) -> int:
        now = int(time.time()) + EPOCH_S
        return now if utc_plausible(now) else 0
