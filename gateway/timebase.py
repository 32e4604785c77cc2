"""From what a device knows about time to UTC with an uncertainty. Pure.

A device always knows how long it has been up, and only sometimes what time it is. For one
boot everything hangs on one unknown number, the *base*: the UTC millisecond at which its
uptime was zero. The record then happened at base + uptime. Evidence about the base:

* A record of uptime u that arrived at A happened no later than A:      base <= A - u.
* A device clock that reads t at uptime u, if it is plausible:          base ~= t - u.
* Boots follow each other. If boot 7 was still up at 3 h, boot 8 began later:
                                        base(8) >= base(7) + 3 h, and the other way round.

So each boot has an interval [low, high] for its base, and evidence only ever makes it
smaller. A boot that never saw a clock lies between its neighbours. Because the base is
kept and not the result, better evidence repairs all earlier records of the boot at once,
and the numbers that the device sent are never touched.

Implausible device clocks (before 2024, or more than a minute after the frame arrived)
are not evidence: an unset clock reads 1970 or 2000, a wild one 2099.
"""

from collections import namedtuple
from collections.abc import Iterable

# No frame of this protocol is older than this: 2024-01-01T00:00:00Z.
EARLIEST_MS = 1_704_067_200_000
# A device clock may run this far ahead of the gateway's and still count.
AHEAD_MS = 60_000
# What a device clock is trusted to: it reads whole seconds, and drifts between settings.
CLOCK_ERROR_MS = 2_000
# With no lower bound the event is placed at its latest possible moment.
UNBOUNDED_MS = 10 * 365 * 86_400_000

# utc_ms: best estimate.  uncertainty_ms: the truth is within +- this.
# source: "clock" the record's own, "boot" another clock reading of the same boot,
# "neighbours" bounded by other boots or by arrival, "arrival" nothing but arrival.
Repaired = namedtuple("Repaired", ("utc_ms", "uncertainty_ms", "source"))


def plausible(utc_s: int, arrival_ms: int) -> bool:
    """Whether a device's UTC second can be true for a frame that arrived then."""
    return EARLIEST_MS <= utc_s * 1000 <= arrival_ms + AHEAD_MS


class Boot:
    """What is known of one boot of one device. All times in milliseconds.

    low, high: bounds of the base from this boot's own evidence; None = unknown.
    last_up: the greatest uptime seen.  clocked: whether a device clock set the bounds.
    floor, ceiling: the same bounds after the neighbours were heard (see `settle`).
    """

    __slots__ = ("boot", "ceiling", "changed", "clocked", "floor", "high", "last_up", "low")

    def __init__(
        self,
        boot: int,
        low: int | None = None,
        high: int | None = None,
        last_up: int = 0,
        clocked: bool = False,
        floor: int | None = None,
        ceiling: int | None = None,
    ) -> None:
        self.boot = boot
        self.low = low
        self.high = high
        self.last_up = last_up
        self.clocked = clocked
        self.floor = floor if floor is not None else low
        self.ceiling = ceiling if ceiling is not None else high
        self.changed = False

    def observe(self, uptime_ms: int, utc_s: int, arrival_ms: int) -> None:
        """Take in one record or hello. utc_s is 0 when the device had no time of day."""
        if uptime_ms > self.last_up:
            self.last_up = uptime_ms
            self.changed = True
        latest = arrival_ms - uptime_ms
        # Tightening by less than this is jitter of the link, not knowledge.
        if self.high is None or (latest < self.high - 20 and not self.clocked):
            self.high = latest
            self.changed = True
        if utc_s and plausible(utc_s, arrival_ms):
            self._clock(utc_s * 1000 + 500 - uptime_ms)

    def _clock(self, base: int) -> None:
        low, high = base - CLOCK_ERROR_MS, base + CLOCK_ERROR_MS
        if not self.clocked:
            self.low, self.high, self.clocked = low, high, True
            self.changed = True
        elif (
            self.low is not None and self.high is not None and (high < self.low or low > self.high)
        ):
            # The clock was set again in this boot: keep both readings possible.
            self.low, self.high = min(low, self.low), max(high, self.high)
            self.changed = True

    def estimate(self) -> tuple[int, int, str]:
        """(base, uncertainty, source) after `settle`."""
        low = self.floor
        high = self.ceiling if self.ceiling is not None else self.high
        if high is None:
            return 0, UNBOUNDED_MS, "arrival"
        if low is None:
            return high, UNBOUNDED_MS, "arrival"
        if low > high:
            # Contradiction: a clock lied. Say so through the width.
            low, high = high, low
        return (low + high) // 2, (high - low + 1) // 2, "boot" if self.clocked else "neighbours"


def settle(boots: Iterable[Boot]) -> list[Boot]:
    """Let neighbouring boots bound each other; return those whose estimate moved.

    boots: all known boots of one flash, in any order.
    """
    chain = sorted(boots, key=lambda b: b.boot)
    before = [(b.floor, b.ceiling) for b in chain]
    at: int | None = None
    for b in chain:
        b.floor = b.low
        # A boot with a clock of its own needs no help, and a lying neighbour must not
        # move it.
        if not b.clocked and at is not None and (b.floor is None or at > b.floor):
            b.floor = at
        if b.floor is not None:
            at = b.floor + b.last_up
        elif at is not None:
            at += b.last_up
    at = None
    for b in reversed(chain):
        b.ceiling = b.high
        if not b.clocked and at is not None:
            latest = at - b.last_up
            if b.ceiling is None or latest < b.ceiling:
                b.ceiling = latest
        if b.ceiling is not None:
            at = b.ceiling
    return [b for b, old in zip(chain, before, strict=True) if (b.floor, b.ceiling) != old]


def repair(boot: Boot | None, uptime_ms: int, utc_s: int, arrival_ms: int) -> Repaired:
    """When a record happened. utc_s: the record's own clock, 0 when it had none."""
    if utc_s and plausible(utc_s, arrival_ms):
        return Repaired(min(utc_s * 1000 + 500, arrival_ms), CLOCK_ERROR_MS, "clock")
    if boot is None:
        return Repaired(arrival_ms, UNBOUNDED_MS, "arrival")
    base, uncertainty, source = boot.estimate()
    if source == "arrival":
        return Repaired(arrival_ms, UNBOUNDED_MS, "arrival")
    when = base + uptime_ms
    if when > arrival_ms:
        # It cannot have happened after it arrived; keep the interval's lower end.
        low = when - uncertainty
        uncertainty = max((arrival_ms - low + 1) // 2, 0)
        when = arrival_ms - uncertainty
    return Repaired(when, uncertainty, source)
