"""What every route needs, whatever its medium: the base that implementations derive from.

A route derives from `LocalRoute` and gives it six verbs: `_start`, `_stop`, `_put`, `_drop`,
`_fetch`, `_listen` (with `_unlisten`). The base does the rest of the contract:

* own announcements are kept as wishes (`held.py`) and delivered by `_put` and `_drop`,
  one at a time per (key, token), tried again with a growing pause until the medium takes
  them, and once more when the medium has lost them (`_reassert`);
* own values are in every lookup and every watch at once, own withdrawn ones in none;
* a lookup ends at its deadline with what `_fetch` has gathered so far;
* watches are told differences only (`watches.py`).

What a verb raises because the medium is away (OSError, TimeoutError, `Away`) counts as
"not yet"; a verb that takes longer than `VERB_S` is cancelled and counts the same.
Everything runs in the loop; an implementation that must block uses `_in_thread`.
"""

import asyncio
import itertools
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from gateway.routes import (
    KEY_SIZE,
    LOOKUP_MAX,
    OWNER_SIZE,
    TOKEN_SIZE,
    VALUE_MAX,
    Callback,
    Found,
    Route,
    RouteError,
)
from gateway.routes.gather import Gather
from gateway.routes.held import Held, Name
from gateway.routes.threads import Away, Threads
from gateway.routes.watches import Watches

__all__ = ["VERB_S", "Away", "LocalRoute"]

log = logging.getLogger("edge_gateway.routes")

VERB_S = 5.0
TICK_S = 0.25
CHECK_S = 60.0  # how often a route is asked what the medium has lost
BACKOFF_S = (0.25, 10.0)  # between deliveries that were refused
PROBE_S = (0.125, 2.0)  # between looks whether the medium is back
PARALLEL, SHARE = 8, 256  # deliveries at a time, and between two looks at the clock


class LocalRoute(Route):
    """owner: this gateway's id.  clock: UTC seconds.
    known: gives the owners that are ours (allow-list); they come first when a key is
        flooded by others. Called from worker threads too."""

    check_s = CHECK_S

    def __init__(
        self,
        owner: bytes,
        *,
        known: Callable[[], Collection[bytes]] = tuple,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if len(owner) != OWNER_SIZE:
            raise RouteError(f"an owner has {OWNER_SIZE} bytes", "owner")
        self.owner = owner
        self.known = known
        self.clock = clock
        self.up = False
        self.counters: dict[str, int] = {}
        self.messages = dict.fromkeys(("announce", "withdraw", "lookup", "watch"), 0)
        self._held = Held()
        self._watches = Watches(self.counters)
        self._opened = self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._deliveries: dict[Name, asyncio.Task[bool]] = {}
        self._wake = asyncio.Event()
        self._was_up = False
        self._pause, self._try_at = BACKOFF_S[0], 0.0
        self._probe_pause, self._probe_at = PROBE_S[0], 0.0
        self._check_at = time.monotonic() + self.check_s
        self._threads = Threads(self.name)
        self._in_thread = self._threads.run  # blocking work, one at a time per name

    # -- for the medium ---------------------------------------------------------------

    @abstractmethod
    async def _start(self) -> None:
        """Reach the medium; call `_set_up(True)` when it is reached, now or later."""

    @abstractmethod
    async def _stop(self) -> None:
        """End what `_start` began."""

    @abstractmethod
    async def _put(self, key: bytes, token: bytes, value: bytes, expires_s: int) -> bool:
        """True when the medium has it durably, as far as that medium goes."""

    @abstractmethod
    async def _drop(self, key: bytes, token: bytes) -> bool:
        """As `_put`; True as well when it was not there."""

    @abstractmethod
    async def _fetch(self, gather: Gather) -> None:
        """Add what is there, mark keys as done. Cancelled at the deadline."""

    @abstractmethod
    async def _listen(self, keys: Collection[bytes]) -> None:
        """From now on tell of these keys (`_told`, `_heard`, `_went`), what is there included,
        also over losses of the medium, until `_unlisten`."""

    @abstractmethod
    async def _unlisten(self, keys: Collection[bytes]) -> None:
        """No longer needed."""

    async def _lost(self) -> Iterable[Name]:
        """Own announcements that should be in the medium and are not; asked every `check_s`.
        May look at a part of them each time."""
        return ()

    async def _probe(self) -> None:
        """Called now and then while not `up`: see whether the medium is back."""

    def _more_status(self) -> dict[str, Any]:
        """What `status` says beyond the base; may override its entries."""
        return {}

    def _set_up(self, up: bool) -> None:
        if up != self.up:
            self.up = up
            self._count("up" if up else "down")
            level = logging.INFO if up or self._closed else logging.WARNING
            log.log(level, "route %s: %s", self.name, "up" if up else "away")
            self._wake.set()

    def _reassert(self, names: "list[Name] | None" = None) -> None:
        """The medium has lost own announcements (None: all): bring them again."""
        self._held.again(names)
        self._wake.set()

    def _spent(self, what: str, messages: int) -> None:
        self.messages[what] += messages

    def _count(self, what: str, by: int = 1) -> None:
        self.counters[what] = self.counters.get(what, 0) + by

    def _gather(self, keys: Iterable[bytes]) -> Gather:
        return Gather(keys, self.clock(), self.counters, self.known())

    def _watched(self) -> list[bytes]:
        return list(self._watches.keys)

    def _told(self, key: bytes, state: Mapping[bytes, int]) -> None:
        """All that the medium has under a watched key: value -> expiry."""
        now = self.clock()
        hidden = self._held.hidden(key)
        merged = {value: t for value, t in state.items() if value not in hidden}
        self._watches.told(key, merged | self._held.values(key, now))

    def _heard(self, key: bytes, value: bytes, expires_s: int = 0) -> None:
        """One value of a watched key. expires_s: 0 when the medium will tell of its end."""
        if 0 < len(value) <= VALUE_MAX and value not in self._held.hidden(key):
            self._watches.appeared(key, value, expires_s)

    def _went(self, key: bytes, value: bytes) -> None:
        if value not in self._held.values(key, self.clock()):
            self._watches.went(key, value)

    # -- the contract -------------------------------------------------------------------

    async def open(self) -> None:
        if self._opened:
            raise RouteError("opened twice", self.name, "Make a new route")
        self._opened = True
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        tasks = [*self._deliveries.values(), *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(2 * VERB_S):
                await self._stop()
        except TimeoutError:
            log.warning("route %s did not stop in time", self.name)
        self._threads.end()
        self.up = False

    async def announce(self, key: bytes, value: bytes, expires_s: int, token: bytes) -> bool:
        name = self._name(key, token)
        if not 0 < len(value) <= VALUE_MAX:
            raise RouteError(f"a value has 1 to {VALUE_MAX} bytes", "announce")
        self._held.want(name, bytes(value), expires_s, self.clock())
        self._own_changed(key)
        return await self._deliver_soon(name)

    async def withdraw(self, key: bytes, token: bytes) -> bool:
        name = self._name(key, token)
        self._held.drop(name, self.clock())
        self._own_changed(key)
        return await self._deliver_soon(name)

    async def lookup(self, keys: Sequence[bytes], deadline_s: float) -> Found:
        wanted = list(dict.fromkeys(keys))
        self._check("lookup", wanted)
        if len(wanted) > LOOKUP_MAX:
            raise RouteError(f"more than {LOOKUP_MAX} keys", "lookup", "Ask in parts")
        gather = self._gather(wanted)
        try:
            async with asyncio.timeout(deadline_s):
                await self._fetch(gather)
        except (TimeoutError, OSError, Away) as error:
            self._count("lookups_cut_short")
            log.debug("route %s: lookup ended early: %r", self.name, error)
        except Exception:
            self._count("errors")
            log.exception("route %s: a lookup failed; answering with what there is", self.name)
        finally:
            gather.closed = True
        self._spent("lookup", gather.messages)
        found = gather.found()
        now = self.clock()
        for key, values in found.values.items():
            hidden = self._held.hidden(key)
            own = self._held.values(key, now)
            values[:] = [*own, *(v for v in values if v not in hidden and v not in own)]
        return found

    async def watch(self, keys: Collection[bytes], callback: Callback) -> int:
        self._check("watch", keys)
        handle, new = self._watches.add(keys, callback)
        now = self.clock()
        for key in new:
            for value, expires_s in self._held.values(key, now).items():
                self._watches.appeared(key, value, expires_s)
        if new:
            await self._try("listen", self._listen(new))
        return handle

    async def unwatch(self, handle: int) -> None:
        left = self._watches.remove(handle)
        if left and not self._closed:
            await self._try("unlisten", self._unlisten(left))

    def status(self) -> dict[str, Any]:
        return {
            "route": self.name,
            "unit": self.unit,
            "up": self.up,
            "peers": -1,
            "announced": self._held.live,
            "pending": len(self._held.due),
            "watched": len(self._watches.keys),
            "counters": dict(self.counters),
            "messages": dict(self.messages),
        } | self._more_status()

    # -- inside ---------------------------------------------------------------------------

    def _check(self, what: str, keys: Collection[bytes]) -> None:
        if not self._opened or self._closed:
            raise RouteError("the route is not open", f"{self.name} {what}")
        for key in keys:
            if len(key) != KEY_SIZE:
                raise RouteError(f"a key has {KEY_SIZE} bytes", what)

    def _name(self, key: bytes, token: bytes) -> Name:
        self._check("announce", (key,))
        if len(token) != TOKEN_SIZE:
            raise RouteError(f"a token has {TOKEN_SIZE} bytes", "announce")
        return bytes(key), bytes(token)

    def _own_changed(self, key: bytes) -> None:
        for value in self._held.hidden(key):
            self._watches.went(key, value)
        for value, expires_s in self._held.values(key, self.clock()).items():
            self._watches.appeared(key, value, expires_s)

    async def _try(self, what: str, work: "Any") -> bool:
        """A verb within its time; False when the medium is away."""
        try:
            async with asyncio.timeout(VERB_S):
                return await work is not False
        except (TimeoutError, OSError, Away) as error:
            self._count(what + "_failed")
            log.debug("route %s: %s: %r", self.name, what, error)
        except Exception:
            self._count("errors")
            log.exception("route %s: %s failed; it will be tried again", self.name, what)
        return False

    async def _deliver_soon(self, name: Name) -> bool:
        """Deliver now; a caller who gives up stops nothing."""
        if not self.up:
            self._wake.set()
            return False
        return await asyncio.shield(self._delivery(name))

    def _delivery(self, name: Name) -> "asyncio.Task[bool]":
        """The task that delivers this slot; one at a time, it takes newer wishes along."""
        task = self._deliveries.get(name)
        if task is None or task.done():
            task = self._deliveries[name] = asyncio.create_task(self._deliver(name))
            task.add_done_callback(lambda done: self._delivered(name, done))
        return task

    def _delivered(self, name: Name, task: "asyncio.Task[bool]") -> None:
        if self._deliveries.get(name) is task:
            del self._deliveries[name]

    async def _deliver(self, name: Name) -> bool:
        """Bring the wish of one slot to the medium, and again when it changed meanwhile."""
        while name in self._held.due:
            slot = self._held.slots[name]
            version = slot.version
            if slot.value is None:
                taken = await self._try("withdraw", self._drop(*name))
            else:
                put = self._put(*name, slot.value, slot.expires_s)
                taken = await self._try("announce", put)
            if not taken:
                self._held.postpone(name)
                return False
            self._held.delivered(name, version, self.clock())
        return True

    async def _keep(self) -> None:
        """Expiry, deliveries that are due, and now and then what the medium has lost."""
        while True:
            self._wake.clear()
            try:
                await self._turn()
            except Exception:
                self._count("errors")
                log.exception("route %s: a turn failed; going on", self.name)
            try:
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _turn(self) -> None:
        wall = self.clock()
        self._held.expire(wall)
        self._watches.expire(wall)
        now = time.monotonic()
        if not self.up and now >= self._probe_at:
            await self._try("probe", self._probe())
            now = time.monotonic()
            self._probe_pause = min(PROBE_S[1], 2 * self._probe_pause)
            self._probe_at = now + self._probe_pause
        if self.up and not self._was_up:
            self._pause, self._try_at = BACKOFF_S[0], now
            self._probe_pause = PROBE_S[0]
        self._was_up = self.up
        if self.up and now >= self._check_at:
            self._check_at = now + self.check_s
            await self._look_for_lost()
        if self.up and self._held.due and now >= self._try_at:
            if await self._deliver_due():
                self._pause = BACKOFF_S[0]
            else:
                self._try_at = time.monotonic() + self._pause
                self._pause = min(BACKOFF_S[1], self._pause * 2)

    async def _look_for_lost(self) -> None:
        try:
            async with asyncio.timeout(VERB_S):
                lost = list(await self._lost())
        except (TimeoutError, OSError, Away):
            return
        if lost:
            self._count("lost", len(lost))
            self._reassert(lost)

    async def _deliver_due(self) -> bool:
        """True when a turn's share was taken. Ends early when the medium only costs time."""
        names = list(itertools.islice(self._held.due, SHARE))
        end = time.monotonic() + 1.0
        taken: list[bool] = []
        for at in range(0, len(names), PARALLEL):
            some = [self._delivery(name) for name in names[at : at + PARALLEL]]
            taken += await asyncio.gather(*some)
            if not self.up or (not any(taken[at:]) and time.monotonic() > end):
                return False
        return all(taken)
