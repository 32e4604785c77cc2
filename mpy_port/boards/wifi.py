"""The life of a board's Wi-Fi: join, join again, wait longer each time. No I/O.

Theory of operation. Somebody looks at the radio now and then and tells `look` what it says;
`look` answers with what to do, if anything. Chance and time are arguments, so a month of
failures is tried in milliseconds.

    state     event      next      what the caller does
    OFF       start      JOINING   "join"
    JOINING   up         UP
    JOINING   absent     WAITING   "leave"; back-off 1-60 s
    JOINING   password   WAITING   "leave"; back-off 15-900 s from the second time on
    JOINING   late       WAITING   "leave"; back-off 1-60 s
    WAITING   due        JOINING   "join"
    WAITING   up         UP        the driver was faster
    UP        lost       WAITING   "leave" after GRACE_MS without an address; back-off
    any       stop       OFF       "off"

What is not among the events: the broker. Whether it answers says nothing about the radio, and a
radio that is torn down for it takes seconds, power, and every device of the hall at once. So
nothing here can be told of it.

"Wrong password" is believed at the second time: access points that are overloaded make the
first handshake fail in the same way. It is not given up, because passwords are also changed at
the access point, and a device cannot be visited for that.
"""

from edge_agent.backoff import Backoff

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

OFF, JOINING, UP, WAITING = "off", "joining", "up", "waiting"

TABLE = {
    (OFF, "start"): JOINING,
    (JOINING, "up"): UP,
    (JOINING, "absent"): WAITING,
    (JOINING, "password"): WAITING,
    (JOINING, "late"): WAITING,
    (WAITING, "due"): JOINING,
    (WAITING, "up"): UP,
    (UP, "lost"): WAITING,
    (OFF, "stop"): OFF,
    (JOINING, "stop"): OFF,
    (WAITING, "stop"): OFF,
    (UP, "stop"): OFF,
}

# What a radio says, whatever its port calls it.
BUSY, ADDRESS, PASSWORD, ABSENT, FAILED = "busy", "address", "password", "absent", "failed"

JOIN_MS = 20000  # for an attempt, address included
GRACE_MS = 5000  # without an address before the network counts as lost: drivers reassociate
STABLE_MS = 10000  # a network that held so long did not fail at once
# A radio fails at once in the first moments of an attempt, from the attempt before.
SETTLE_MS = 500


class Wifi:
    """Attributes: state; since_ms (when it began); joins, losses, wrong (passwords refused in
    a row), told (the last failure: "", "password", "absent" or "late"); look_at (when
    to look again at the latest). chance(n): a random number 0..n-1."""

    def __init__(self, chance: "Callable[[int], int]", join_ms: int = JOIN_MS) -> None:
        self._backoff = Backoff(chance)
        self._join_ms = join_ms
        self.state = OFF
        self.since_ms = 0
        self.joins = self.losses = self.wrong = 0
        self.told = ""
        self.look_at = 0
        self._gone_at = -1  # UP: when the address went

    def start(self, now: int) -> str:
        """Begin to want the network. "join", or "" when that was known."""
        if self.state != OFF:
            return ""
        return self._join("start", now)

    def stop(self, now: int) -> str:
        """Want it no more: for a sleep, never for a broker. Always "off"."""
        self._go("stop", now)
        return "off"

    def look(self, radio: str, now: int) -> str:
        """What the radio says (BUSY .. FAILED) -> "join", "leave" or ""."""
        if self.state == JOINING:
            return self._joining(radio, now)
        if self.state == UP:
            return self._up(radio, now)
        if self.state == WAITING:
            if radio == ADDRESS:
                self._arrive(now)
            elif now >= self.look_at:
                return self._join("due", now)
        return ""

    def believed_wrong(self) -> bool:
        """The password is refused, and not for the first time."""
        return self.wrong >= 2

    # -- by state ------------------------------------------------------------------------

    def _joining(self, radio: str, now: int) -> str:
        took = now - self.since_ms
        if radio == ADDRESS:
            self._arrive(now)
            return ""
        if took >= SETTLE_MS:
            if radio == PASSWORD:
                self.wrong += 1
                return self._fail("password", "refused" if self.believed_wrong() else "radio", now)
            if radio in (ABSENT, FAILED):
                return self._fail("absent", "radio", now)
        if took >= self._join_ms:
            return self._fail("late", "radio", now)
        return ""

    def _up(self, radio: str, now: int) -> str:
        if now - self.since_ms >= STABLE_MS:
            self._backoff.stood()
        if radio == ADDRESS:
            self._gone_at = -1
            return ""
        if self._gone_at < 0:
            self._gone_at = now
        if now - self._gone_at < GRACE_MS:
            return ""
        self.losses += 1
        return self._fail("lost", "radio", now)

    # -- steps ---------------------------------------------------------------------------

    def _go(self, event: str, now: int) -> None:
        self.state = TABLE[(self.state, event)]
        self.since_ms = now

    def _join(self, event: str, now: int) -> str:
        self._go(event, now)
        self.joins += 1
        return "join"

    def _arrive(self, now: int) -> None:
        # The ladder of the radio starts over only when the network has held for a while.
        self._go("up", now)
        self.wrong = 0
        self.told = ""
        self._gone_at = -1

    def _fail(self, event: str, ladder: str, now: int) -> str:
        self._go(event, now)
        self.told = event
        self.look_at = now + self._backoff.pause_ms(ladder)
        return "leave"
