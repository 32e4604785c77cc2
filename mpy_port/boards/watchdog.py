"""When the hardware's watchdog is fed: only while the agent makes progress. No I/O.

Theory of operation. A watchdog that a timer feeds proves that the timer runs. Here a task feeds
it, and only if every *sign* of progress is fresh: a sign is a value that changes while its
part of the agent lives (windows read, attempts to connect), with a longest time for
which it may stand still. None means that nothing is due there: the sensor has ended, the
device rests. So the board starts anew when

- the event loop hangs: nobody feeds;
- a sensor's bus hangs, though the loop turns: "sense" stands still;
- the link neither stands nor is tried again: "link" stands still.

A broker that is away is no reason: attempts go on, and they are the sign. After the reset the
journal holds what it held; the limits are so long that a board which cannot be helped by a reset
does it some times an hour and not more.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FEED_MS = 2000  # how often somebody asks
LEAST_MS = 30000  # shortest limit of a sign


class Watchdog:
    """limits: sign -> ms for which it may stand still. Attributes: stuck (name of the sign
    that stands still, ""), fed (how often)."""

    def __init__(self, limits: "dict[str, int]", now: int) -> None:
        self._limits = {name: max(LEAST_MS, limits[name]) for name in limits}
        self._seen: dict[str, tuple[Any, int]] = dict.fromkeys(limits, (None, now))
        self.stuck = ""
        self.fed = 0

    def feed(self, signs: "dict[str, Any]", now: int) -> bool:
        """Whether the hardware may be fed now. A sign that is missing counts as None."""
        self.stuck = ""
        for name in sorted(self._limits):
            value = signs.get(name)
            before, at = self._seen[name]
            if value is None or value != before:
                self._seen[name] = (value, now)
            elif now - at > self._limits[name]:
                self.stuck = name
        if self.stuck:
            return False
        self.fed += 1
        return True
