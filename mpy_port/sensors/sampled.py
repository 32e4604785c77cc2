"""Windows out of samples taken one by one, at a steady pace. Runs on boards and on Linux.

A source has `open()`, `begin()` -> ms until the sample is there, `sample(out, at)` and
`close()`, as the chips of chips.py have. Samples fall due by the clock, not after each other, so
that work in between does not stretch a window; after a gap of more than four periods the
samples so far do not belong together and the window begins anew.

`due_ms()` says for how long nobody is needed here, so that a board may sleep meanwhile.
"""

import asyncio
from array import array

from edge_agent.errors import SensorError
from edge_agent.interfaces import Sensor, Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

_LATE = 4  # periods


class Sampled(Sensor):
    """axes, window, hop: of the domain. period_ms: from sample to sample. now(): ms that
    do not wrap. stuck_ms: when nothing has changed for so long the sensor is dead; 0 = never."""

    def __init__(
        self,
        source: "Any",
        axes: int,
        window: int,
        hop: int,
        period_ms: int,
        now: "Callable[[], int]",
        tags: "tuple[int, ...]" = (),
        stuck_ms: int = 0,
        where: str = "sensor",
    ) -> None:
        self._source = source
        self._axes, self._size, self._step = axes, window * axes, hop * axes
        self._samples = array("h", bytes(2 * self._size))
        self._one = array("h", bytes(2 * axes))
        self._last = array("h", bytes(2 * axes))
        self._period, self._now = period_ms, now
        self._tags, self._stuck, self._where = tags, stuck_ms, where
        self._at = 0  # values in the window; negative: still to be passed over
        self._due = -1
        self._changed = 0
        self._opened = False

    def due_ms(self) -> "int | None":
        """Until the next sample; None before the first one."""
        if self._due < 0:
            return None
        return max(0, self._due - self._now())

    async def read(self) -> "Window | None":
        self._slide()
        while self._at < self._size:
            await self._wait()
            try:
                await self._take()
            except SensorError:
                self._opened = False
                self._due = -1
                self._at = 0
                raise
        return Window(self._samples, self._tags, "")

    def _slide(self) -> None:
        """Keep what the next window shares with the last one."""
        if self._at < self._size:
            return
        samples, kept = self._samples, self._size - self._step
        for i in range(kept):
            samples[i] = samples[i + self._step]
        self._at = kept

    async def _wait(self) -> None:
        now = self._now()
        if not self._opened:
            self._source.open()
            self._opened = True
        if self._due < 0 or now - self._due > _LATE * self._period:
            self._anew(now)
        if self._due > now:
            await asyncio.sleep((self._due - now) / 1000)
        self._due += self._period

    def _anew(self, now: int) -> None:
        """Begin a window: its first sample is due."""
        self._due = self._changed = now
        self._at = 0

    async def _take(self) -> None:
        pause = self._source.begin()
        if pause:
            await asyncio.sleep(pause / 1000)
        one, at = self._one, self._at
        self._source.sample(one, 0)
        same = True
        for i in range(self._axes):
            if one[i] != self._last[i]:
                same = False
                self._last[i] = one[i]
            if at >= 0:
                self._samples[at + i] = one[i]
        self._at = at + self._axes
        now = self._now()
        if not same:
            self._changed = now
        elif self._stuck and now - self._changed >= self._stuck:
            raise SensorError(
                "has not changed for %d s" % (self._stuck // 1000),
                self._where,
                "Check its power; a really constant signal needs sensor.stuck_s 0",
            )

    async def close(self) -> None:
        if self._opened:
            self._opened = False
            self._source.close()
