"""Time on Linux."""

import time

from edge_agent.interfaces import Clock, utc_plausible


class LinuxClock(Clock):
    """Monotonic uptime of this process, and the system's time of day when plausible.

    A process start counts as a boot, so uptime starts near 0 with it. The system clock
    is never set from here: that is NTP's business, and takes root.
    """

    def __init__(self) -> None:
        self._start = time.monotonic_ns()

    def uptime_ms(self) -> int:
        return (time.monotonic_ns() - self._start) // 1_000_000

    def utc_s(self) -> int:
        now = int(time.time())
        return now if utc_plausible(now) else 0
