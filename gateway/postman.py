"""What to send to a device's mailbox, and when. Pure: no clock, no socket, no database.

**The device is the truth.** It takes the box whose number follows the last one it took, and
says in every hello how far it got (`taken`). Here a number is bound to an item, durably,
before the box goes out, and never means anything else until the device is found to have gone
back. So when a hello says "7 taken", the items that were 6 and 7 are delivered: that is how a
sender knows, and how each item is taken exactly once, whatever is lost, repeated or restarted.

**Old hellos.** A broker may deliver one again after a restart, and anybody on the way may keep
one. Believed, it would look like a device that went back, and numbers would be bound anew
while the device has taken the old ones. So a hello that does not fit (lower than known,
higher than ever sent, or from before the device was last found) is not believed: it makes
the gateway ask. A hello names the highest down counter the device has seen; one that names
the counter of something sent after the question is fresh. Then the device is believed
whatever it says:

    hello                                       verdict
    known <= taken <= highest number bound      SAME, or MORE: items delivered
    else, counter >= that of the question       ADOPT: go on from there
    else                                        ASK, or DOUBT where it was known before

The question is a box with the highest number there is: a device that takes mail has a gap
there and answers a gap with a hello. A device that was never heard of is asked when there is
mail for it, one in doubt at once: it may have lost what it had. After ADOPT nothing that an
older hello says counts (`born`): its counter is lower. A database that is a new one has heard
of nobody.

**When.** Nothing before a hello was heard, so that a sleeping device costs nothing and the
broker's queue does not fill with boxes that are stale when it wakes. At most WINDOW numbers
are unconfirmed. They go out again, the same, on a new connection of the device; when its
hello shows that it has seen them and not taken them; and when nothing moves, after AGAIN_MS
and then at twice the interval, TRIES times. After that the device counts as away.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

WINDOW = 8
AGAIN_MS = 15_000
TRIES = 4
PROBE_NUMBER = 0xFFFF_FFFF  # never taken: the number before it would have to be the last

SAME, MORE, ADOPT, ASK, DOUBT = "same", "more", "adopt", "ask", "doubt"


class Standing(NamedTuple):
    """How far a device got, as it is kept in the database.

    taken: highest number known to be taken, None when it was never found out.  top: highest
    number bound to an item.  born: hellos with a lower down counter are of an earlier life.
    """

    taken: int | None = None
    top: int = 0
    born: int = 0


def judge(standing: Standing, taken: int, counter: int, asked: int) -> tuple[str, Standing]:
    """What a hello means: (verdict, standing after it). asked: 0, or the down counter from
    which on a hello answers the question."""
    known = standing.taken
    if known is not None and counter >= standing.born and known <= taken <= standing.top:
        if taken == known:
            return SAME, standing
        return MORE, standing._replace(taken=taken)
    if asked and counter >= asked:
        if known is not None and known <= taken <= standing.top:
            # As expected, only that it had forgotten the counter: the numbers stay bound.
            return ADOPT, standing._replace(taken=taken, born=asked)
        # It went back, or this database did. What is under way has meant something else, or
        # may have: it gets new numbers.
        return ADOPT, Standing(taken, taken, asked)
    return (ASK if known is None else DOUBT), standing


class Turn(NamedTuple):
    """What to do for one device now. again: numbers to repeat. room: numbers to bind anew."""

    ask: bool
    again: tuple[int, ...]
    room: int


_NOTHING = Turn(False, (), 0)


class _Door:
    """What is known of a device while this process runs."""

    __slots__ = ("asked", "doubt", "here", "lost", "moved_ms", "nonce", "seen", "sent", "tries")

    def __init__(self) -> None:
        self.here = False
        self.nonce = b""
        self.seen = 0  # down counter of its newest hello
        self.asked = 0
        self.doubt = False
        self.lost = False  # it is in doubt and was known
        self.sent: dict[int, int] = {}  # number -> counter it went out with last
        self.moved_ms = 0  # when something was heard, or last tried
        self.tries = 0


class Postman:
    """One for all devices. Times are any milliseconds that do not go back."""

    def __init__(self) -> None:
        self._doors: dict[bytes, _Door] = {}

    def _door(self, agent: bytes) -> _Door:
        found = self._doors.get(agent)
        if found is None:
            found = self._doors[agent] = _Door()
        return found

    # -- what happens -------------------------------------------------------------------

    def asked(self, agent: bytes) -> int:
        """For `judge`."""
        return self._door(agent).asked

    def heard(self, agent: bytes, nonce: bytes, counter: int, verdict: str, now_ms: int) -> None:
        """A hello of this device was judged, and what followed from it is written down."""
        door = self._door(agent)
        if nonce != door.nonce:
            # What was under way on the old connection may be lost.
            door.nonce = nonce
            door.sent.clear()
            door.seen = 0
            door.doubt = False
        if not door.here or verdict in (MORE, ADOPT):
            door.tries = 0
        door.here = True
        door.seen = max(door.seen, counter)
        door.moved_ms = now_ms
        if verdict in (ASK, DOUBT):
            if not door.doubt or not door.asked:
                door.doubt = True
                door.lost = verdict == DOUBT
                door.tries = 0
                door.moved_ms = now_ms - AGAIN_MS
            return
        door.doubt = False
        door.asked = 0
        if verdict == ADOPT:
            door.sent.clear()

    def away(self, agent: bytes) -> None:
        """The broker says that the device has gone."""
        if agent in self._doors:
            self._doors[agent].here = False

    def new_session(self) -> None:
        """Our connection to the broker is a new one: what was under way may be lost."""
        for door in self._doors.values():
            door.sent.clear()
            door.moved_ms -= AGAIN_MS

    def forgotten(self) -> None:
        """The database is a new one: who is here is asked before anything is sent there."""
        for door in self._doors.values():
            door.sent.clear()
            door.asked = door.tries = 0
            door.doubt, door.lost = True, False
            door.moved_ms -= AGAIN_MS

    def here(self, agent: bytes) -> bool:
        return agent in self._doors and self._doors[agent].here

    def lost(self, agent: bytes) -> bool:
        """Whether the device may have lost what it took: it is asked even without mail."""
        door = self._door(agent)
        return door.doubt and door.lost

    # -- what to do ---------------------------------------------------------------------

    def turn(self, agent: bytes, open_: Sequence[int], waiting: bool, now_ms: int) -> Turn:
        """open_: numbers bound and not taken. waiting: there are items without a number."""
        door = self._door(agent)
        if not door.here or not (open_ or waiting or self.lost(agent)):
            return _NOTHING
        if door.doubt:
            return Turn(self._again(door, now_ms), (), 0)
        again = tuple(n for n in open_ if door.sent.get(n, 0) <= door.seen)
        if not again and open_ and self._again(door, now_ms):
            again = tuple(open_)
        if not door.here:
            return _NOTHING
        return Turn(False, again, max(0, WINDOW - len(open_)) if waiting else 0)

    def _again(self, door: _Door, now_ms: int) -> bool:
        """Whether it is time to try once more; after TRIES the device counts as away."""
        if now_ms - door.moved_ms < AGAIN_MS << door.tries:
            return False
        if door.tries >= TRIES:
            door.here = False
            return False
        door.tries += 1
        door.moved_ms = now_ms
        return True

    def sent(self, agent: bytes, numbers: Iterable[tuple[int, int]], now_ms: int) -> None:
        """(number, counter) of what has just gone out."""
        door = self._door(agent)
        if not door.sent:
            door.moved_ms = now_ms
        door.sent.update(numbers)
        if len(door.sent) > 4 * WINDOW:  # only the open ones are asked for
            door.sent = dict(sorted(door.sent.items())[-2 * WINDOW :])

    def asking(self, agent: bytes, counter: int) -> None:
        """The question goes out. counter: of anything sent since the hello in doubt."""
        door = self._door(agent)
        door.asked = door.asked or counter
