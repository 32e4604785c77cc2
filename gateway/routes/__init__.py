"""The contract of a route: where pointers are put, and where they are found again.

A route carries small opaque values under 20-byte keys between gateways. It knows nothing
of outcomes, cells or signatures, and it promises little, so that media as different as a
DHT, a synced directory, a database, another gateway and an MQTT broker can all keep it:

* A value that was announced is *usually* found by others within `seen_s`.
* What is found may be anything: forged, stale, twice, or missing. Signatures, expiry and
  epochs inside the value are what the reader goes by; a route never interprets a value,
  and garbage beside a good value neither hides nor breaks it.
* A route is never the reason that a query waits: `lookup` answers at its deadline with
  what is there and names the keys that it has no answer for.
* What this process announced it sees at once, whatever the medium does: a gateway alone
  (N = 1), or one that is cut off, has a working route to itself.

**Who calls what.** One task-switching loop, any task of it, concurrently; nothing here may be
called from another thread. `open` once first, `close` once last. A closed route is not
opened again: make a new one.

**Owner.** Each route object belongs to one gateway, whose 8-byte id is its `owner`. Media
that can, keep owners apart (a subfolder, a column, a topic level): then no owner can crowd
out another under a key, and access rules of the medium can forbid writing as someone else.

**Own announcements** are remembered by the route from `announce` until they expire or are
withdrawn, and brought to the medium again whenever it was away or lost them. Across
processes nothing is remembered: after a restart the caller announces again what still
holds, with the same tokens. `close` withdraws nothing.

**Watching** is level-triggered: a callback hears of every distinct value under its key,
those already there and the gateway's own included, at least once. A value that went
(withdrawn, expired, replaced) is told as None.

Implementations: `folder`, `sqlite` and `postgres`, `pubsub` (MQTT), `http` (a gateway as
directory), `dht` (OpenDHT). `local.LocalRoute` does what all need: it remembers own
announcements, dispatches watches, checks arguments, and keeps the deadline.
tests/host/test_routes.py holds all of them against this page.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from edge_agent.errors import EdgeError

OWNER_SIZE, KEY_SIZE, TOKEN_SIZE = 8, 20, 16
VALUE_MAX = 512  # bytes of one value, at least 1
LOOKUP_MAX = 256  # keys of one lookup
PER_OWNER = 64  # values of one owner under one key; the announcer is refused beyond it
PER_KEY = 512  # values of one key that a lookup returns; shared fairly between owners
HELD_MAX = 20_000  # own announcements that a route remembers
WATCH_MAX = 4096  # distinct keys watched at a time
LIFETIME_MAX_S = 30 * 86400  # what expires later is refused by announcer and reader alike

# Called in the loop with the key and a value, or None when a value went. Must not block
# and must not await; what it raises is logged and counted, and the route goes on.
Callback = Callable[[bytes, bytes | None], None]


class RouteError(EdgeError):
    """The caller asked for what a route cannot do: a wrong size, a limit, a closed route.

    Never raised because the medium is away; `open` alone raises it when the medium is set up
    in a way that waiting cannot cure (no such folder, password refused, port in use).
    """


class Found(NamedTuple):
    """What a lookup brought by its deadline.

    values: every key that was asked for -> distinct values, in no particular order;
        expired ones (by the medium's envelope) left out, own ones included.
    missed: keys the medium gave no complete answer for. Their `values` may still hold some.
    messages: what the lookup cost this member: packets, requests, statements or file
        operations, each route's unit in its `unit`.
    """

    values: dict[bytes, list[bytes]]
    missed: list[bytes]
    messages: int


class Route(ABC):
    """One gateway's access to one medium. Sizes and limits: the constants of this module.

    name: "folder", "sqlite", "postgres", "pubsub", "http" or "dht".
    unit: what `messages` counts, in the plural.
    seen_s: seconds by which others' lookups usually find an announcement, medium up.
    gone_s: seconds by which a withdrawn or replaced value usually is no longer found by
        others. Who must be sure announces a signed withdrawal as a value.
    pushed_s: seconds by which a watch hears of an announcement.
    """

    name: str = ""
    unit: str = "messages"
    seen_s: float = 1.0
    gone_s: float = 1.0
    pushed_s: float = 1.0

    @abstractmethod
    async def open(self) -> None:
        """Begin. Returns when the medium was reached, or after at most 5 s when it was not:
        then the route is open but not `up`, and keeps trying.

        RouteError when the set-up itself is wrong."""

    @abstractmethod
    async def close(self) -> None:
        """End every task, thread, process and connection of this route within 10 s.

        Announcements stay in the medium until they expire. Closing twice is harmless."""

    @abstractmethod
    async def announce(self, key: bytes, value: bytes, expires_s: int, token: bytes) -> bool:
        """Put `value` under `key` until `expires_s` (UTC seconds since 1970, absolute).

        token: 16 bytes, the caller's name for this announcement; stable over its updates.
            The same (key, token) again replaces value and expiry; the same value again
            renews it. Another key with the same token is another announcement.
        Returns True when the medium has it, False when it does not have it yet (at most 5 s
        are waited): the route holds it, and tries until it expires or is withdrawn. Either
        way own lookups see it at once.
        RouteError: sizes, an expiry that is past or beyond LIFETIME_MAX_S, PER_OWNER,
        HELD_MAX, not open."""

    @abstractmethod
    async def withdraw(self, key: bytes, token: bytes) -> bool:
        """Take an announcement of this owner back, also one of an earlier process.

        Returns as `announce` does. Own lookups stop seeing it at once, others within
        `gone_s`. Withdrawing what is not there is harmless."""

    @abstractmethod
    async def lookup(self, keys: Sequence[bytes], deadline_s: float) -> Found:
        """Everything under `keys` (at most LOOKUP_MAX; repeated ones count once).

        deadline_s: seconds from now, not a time of day. Returns by then, earlier when every
        key was answered. Medium trouble is never raised; it shows as `missed`.
        RouteError: sizes, too many keys, not open."""

    @abstractmethod
    async def watch(self, keys: Collection[bytes], callback: Callback) -> int:
        """Call `callback` for every value there is or comes under `keys`; returns a handle.

        Returns before values already there were told, or while they are; may call back
        from within. Several watches of one key are independent. While the medium is away
        nothing is told; when it is back, what was missed is.
        RouteError: sizes, WATCH_MAX, not open."""

    @abstractmethod
    async def unwatch(self, handle: int) -> None:
        """End a watch; its callback is not called after this returned. Unknown: harmless."""

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """For people and metrics; only plain JSON values. Always present:

        route: name.  unit: as above.  up: bool, the medium answered lately.
        peers: other owners or nodes known of, -1 when the medium cannot tell.
        announced: own announcements held.  pending: of these, not yet in the medium.
        watched: keys.  counters: dict of counts, refused and damaged values among them.
        messages: {"announce", "withdraw", "lookup", "watch"} -> units so far."""


__all__ = [
    "HELD_MAX", "KEY_SIZE", "LIFETIME_MAX_S", "LOOKUP_MAX", "OWNER_SIZE", "PER_KEY",
    "PER_OWNER", "TOKEN_SIZE", "VALUE_MAX", "WATCH_MAX", "Callback", "Found", "Route",
    "RouteError",
]  # fmt: skip
