"""The life of the link: when to connect, when to let go. No I/O.

    state       event   next         what the caller does
    IDLE        start   WAITING
    WAITING     due     CONNECTING   Connect
    WAITING     stop    IDLE
    CONNECTING  up      UP           greets
    CONNECTING  down    WAITING      back-off
    CONNECTING  close   CLOSING      Disconnect
    UP          down    WAITING      back-off
    UP          close   CLOSING      says "offline", then Disconnect
    CLOSING     up      CLOSING      it came too late
    CLOSING     down    WAITING      or IDLE, when stopping

With a duty cycle (duty_s > 0) the link is opened every duty_s seconds, or at once when an
urgent record waits, and closed when nothing is left to do for LINGER_MS, or at the cap.
Each turn comes up to an eighth earlier, by chance: devices that began together, or two
copies of one, must not meet at the broker for ever.
"""

from edge_agent.backoff import Backoff

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from edge_agent.config import Config

IDLE, WAITING, CONNECTING, UP, CLOSING = "idle", "waiting", "connecting", "up", "closing"

TABLE = {
    (IDLE, "start"): WAITING,
    (WAITING, "due"): CONNECTING,
    (WAITING, "stop"): IDLE,
    (CONNECTING, "up"): UP,
    (CONNECTING, "down"): WAITING,
    (CONNECTING, "close"): CLOSING,
    (UP, "down"): WAITING,
    (UP, "close"): CLOSING,
    (CLOSING, "up"): CLOSING,
    (CLOSING, "down"): WAITING,
    (CLOSING, "stopped"): IDLE,
}

STABLE_MS = 10000  # a link that stood this long did not fail at once
LINGER_MS = 2000  # time for the mailbox after the last thing that happened
CLOSE_MS = 3000  # for "offline" to go out


class Connection:
    """Attributes: state, number (of the connection, from 1), up_ms (when it began, 0 when
    down), active_ms (when something happened last), stopping."""

    def __init__(self, settings: "Config", chance: "Callable[[int], int]") -> None:
        self._set = settings
        self._chance = chance
        self._backoff = Backoff(chance)
        self.state = IDLE
        self.stopping = False
        self.number = 0
        self.up_ms = 0
        self.active_ms = 0
        self._retry_at = 0
        self._duty_at = 0
        self._urgent = False
        self._close_at = 0

    def can(self, event: str) -> bool:
        return (self.state, event) in TABLE

    def go(self, event: str) -> None:
        self.state = TABLE[(self.state, event)]

    def start(self, now: int) -> None:
        self.go("start")
        self._retry_at = self._duty_at = now

    def urgent(self) -> None:
        """Something is waiting that the duty cycle must not hold back."""
        self._urgent = True

    def due_at(self) -> int:
        if self._urgent or not self._set.duty_s:
            return self._retry_at
        return max(self._retry_at, self._duty_at)

    def up(self, now: int) -> bool:
        """The session began. False: it is not wanted any more."""
        self.go("up")
        if self.state != UP:
            return False
        self._backoff.connected()
        self.number += 1
        self.up_ms = self.active_ms = now
        self._duty_at = now + 1000 * self._set.duty_s - self._chance(125 * self._set.duty_s + 1)
        return True

    def down(self, reason: str, now: int) -> "int | None":
        """The session ended: the pause until the next attempt, None when we ended it."""
        self.go("stopped" if self.stopping and self.state == CLOSING else "down")
        if self.up_ms and now - self.up_ms >= STABLE_MS:
            self._backoff.stood()
        self.up_ms = self._close_at = 0
        if self.stopping:
            self.state = IDLE
            return None
        if reason == "closed":
            self._retry_at = now
            return None
        pause = self._backoff.pause_ms(reason)
        self._retry_at = now + pause
        return pause

    def close(self, now: int) -> None:
        """Begin to let go: "offline" has CLOSE_MS to leave."""
        self.go("close")
        self._close_at = now + CLOSE_MS

    def cut(self) -> None:
        """Disconnect was asked for."""
        self._close_at = 0

    def overstayed(self, now: int) -> bool:
        """CLOSING, and "offline" has had its time."""
        return self.state == CLOSING and self._close_at > 0 and now >= self._close_at

    def rest(self, now: int, busy: bool, not_before: int) -> "str | None":
        """Why the duty cycle should close the link now: "idle", "cap", or None."""
        if not self._set.duty_s:
            return None
        if not busy and now >= max(self.active_ms + LINGER_MS, not_before):
            self._urgent = False
            return "idle"
        if now - self.up_ms >= 1000 * self._set.duty_cap_s:
            # An urgent record that found no gateway waits for the next turn as well.
            self._urgent = False
            return "cap"
        return None

    def wakes(self, busy: bool, not_before: int) -> "list[int]":
        """Times at which something here changes by itself."""
        if self.state == WAITING:
            return [self.due_at()]
        if self.state == CLOSING and self._close_at:
            return [self._close_at]
        times = []
        if self.state == UP and self._set.duty_s:
            times.append(self.up_ms + 1000 * self._set.duty_cap_s)
            if not busy:
                times.append(max(self.active_ms + LINGER_MS, not_before))
        return times
