"""The http route: other gateways keep the pointers, over the signed requests of peers.py.

One or more members of the network are named as directories. Announcements go to each of
them, a lookup asks all at once and takes the union; a key is answered when one of them
answered it. This gateway may be one of the directories itself: then that one is asked
without a network.

For networks of a few gateways that reach each other anyway, this route needs no other
part: no broker, no share, no DHT. It does not scale like a DHT, and a directory sees who
asks for which key (not what the key stands for, nor what a sealed pointer says).

Deliveries that come at the same time share a request. Watches are a long poll per
directory, and a lookup of what changed. A directory that has forgotten (a new epoch in
any answer) is told everything again. A message is a request.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from edge_agent.errors import RemoteError
from gateway.directory import BATCH_MAX, WAIT_S, Directory
from gateway.peers import ANNOUNCE, LOOKUP, WATCH, WITHDRAW, PeerError, Request, Rules
from gateway.routes import LOOKUP_MAX, RouteError
from gateway.routes.gather import Gather
from gateway.routes.local import VERB_S, Away, LocalRoute

# ask(gateway, operation, body, deadline_s) -> body of the answer, or PeerError
Ask = Callable[[bytes, str, Any, float], Awaitable[Any]]

RETRY_S = (0.25, 5.0)  # between polls of a directory that is away


class Keeper(Protocol):
    """A directory, near or far."""

    async def __call__(self, op: str, body: Any, deadline_s: float) -> Any: ...


def far(ask: Ask, gateway: bytes) -> Keeper:
    """A directory at another gateway."""

    async def call(op: str, body: Any, deadline_s: float) -> Any:
        return await ask(gateway, op, body, deadline_s)

    return call


def near(directory: Directory, owner: bytes) -> Keeper:
    """The directory of this process."""
    handlers = directory.handlers()

    async def call(op: str, body: Any, deadline_s: float) -> Any:
        async with asyncio.timeout(deadline_s):
            return await handlers[op](Request(owner, op, body, b"", b"", Rules()))

    return call


@dataclass(eq=False, slots=True)
class _Link:
    call: Keeper
    epoch: Any = None
    number: int = 0
    up: bool = False
    owners: int = 0
    batch: list[tuple[str, list[Any], "asyncio.Future[bool]"]] = field(default_factory=list)
    poll: "asyncio.Task[None] | None" = None
    waiting: "asyncio.Task[Any] | None" = None


class HttpRoute(LocalRoute):
    """keepers: the directories, at least one."""

    name = "http"
    unit = "requests"
    seen_s = 1.0
    gone_s = 1.0
    pushed_s = 1.0
    check_s = 10.0  # one small request to each directory

    def __init__(
        self,
        owner: bytes,
        keepers: Sequence[Keeper],
        **options: Any,
    ) -> None:
        super().__init__(owner, **options)
        if not keepers:
            raise RouteError("no directory named", "http", "Name at least one gateway")
        self._links = [_Link(keeper) for keeper in keepers]
        self._flushing: set[asyncio.Task[None]] = set()

    # -- verbs ------------------------------------------------------------------------

    async def _start(self) -> None:
        with contextlib.suppress(Away):
            await self._probe()

    async def _stop(self) -> None:
        tasks = [*self._flushing, *(link.poll for link in self._links if link.poll)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _probe(self) -> None:
        await asyncio.gather(*(self._greet(link) for link in self._links))

    async def _greet(self, link: _Link) -> None:
        with contextlib.suppress(Away):
            await self._call(link, LOOKUP, [], VERB_S - 0.5)

    async def _lost(self) -> list[Any]:
        await self._probe()  # a new epoch in the answer brings everything back
        return []

    async def _put(self, key: bytes, token: bytes, value: bytes, expires_s: int) -> bool:
        return await self._everywhere(ANNOUNCE, [key, token, value, expires_s])

    async def _drop(self, key: bytes, token: bytes) -> bool:
        return await self._everywhere(WITHDRAW, [key, token])

    async def _everywhere(self, op: str, row: list[Any]) -> bool:
        """True when every directory that is up has taken it, and one is."""
        results = await asyncio.gather(*(self._add(link, op, row) for link in self._links))
        return any(results) and all(
            taken or not link.up for taken, link in zip(results, self._links, strict=True)
        )

    async def _add(self, link: _Link, op: str, row: list[Any]) -> bool:
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        link.batch.append((op, row, done))
        if len(link.batch) == 1:
            task = asyncio.create_task(self._flush(link))
            self._flushing.add(task)
            task.add_done_callback(self._flushing.discard)
        return await done

    async def _flush(self, link: _Link) -> None:
        """Send what has gathered, in order; neighbours with one operation share a request."""
        await asyncio.sleep(0)
        while link.batch:
            op = link.batch[0][0]
            count = 0
            while count < min(len(link.batch), BATCH_MAX) and link.batch[count][0] == op:
                count += 1
            some = link.batch[:count]
            taken: list[Any] = [False] * count
            try:
                answer = await self._call(link, op, [row for _, row, _ in some], VERB_S - 0.5)
                if op == WITHDRAW:
                    taken = [True] * count
                elif type(answer[1]) is list and len(answer[1]) == count:
                    taken = [one is True for one in answer[1]]
                    self._count("refused", taken.count(False))
                self._spent("announce" if op == ANNOUNCE else "withdraw", 1)
            except (Away, TimeoutError):
                pass
            finally:
                del link.batch[:count]
                for (_, _, done), one in zip(some, taken, strict=True):
                    if not done.done():
                        done.set_result(one)

    async def _fetch(self, gather: Gather) -> None:
        await asyncio.gather(*(self._ask_one(link, gather) for link in self._links))
        if not gather.all_done():
            raise Away("no directory answered")

    async def _ask_one(self, link: _Link, gather: Gather) -> None:
        left = list(gather.keys)
        with contextlib.suppress(Away, TimeoutError):
            while left:
                gather.messages += 1
                found = await self._call(link, LOOKUP, left[:LOOKUP_MAX], VERB_S)
                for key, state in _states(found):
                    for value, expires_s in state.items():
                        gather.add(key, value, expires_s)
                    gather.done(key)
                    if key in left:
                        left.remove(key)
                if not found[2]:
                    return

    async def _listen(self, keys: Collection[bytes]) -> None:
        for link in self._links:
            if link.poll is None:
                link.poll = asyncio.create_task(self._poll(link))
            link.number = -1  # what is there already is looked up first
            if link.waiting is not None:
                link.waiting.cancel()

    async def _unlisten(self, keys: Collection[bytes]) -> None:
        """The next poll leaves them out."""

    # -- polls ------------------------------------------------------------------------

    async def _poll(self, link: _Link) -> None:
        pause = RETRY_S[0]
        while True:
            try:
                if self._watched():
                    await self._turn_of(link)
                else:
                    await asyncio.sleep(0.25)
                pause = RETRY_S[0]
            except (Away, TimeoutError):
                link.number = -1
                await asyncio.sleep(pause)
                pause = min(RETRY_S[1], 2 * pause)
            except Exception:
                self._count("errors")
                await asyncio.sleep(RETRY_S[1])

    async def _turn_of(self, link: _Link) -> None:
        """One long poll, and lookups of what it names."""
        keys = self._watched()
        body = [keys, link.epoch, link.number, int(WAIT_S) if link.number >= 0 else 0]
        link.waiting = asyncio.create_task(self._call(link, WATCH, body, WAIT_S + 5))
        try:
            answer = await link.waiting
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            return  # new keys are watched: poll again with them
        finally:
            link.waiting = None
        self._spent("watch", 1)
        if len(answer) != 4 or type(answer[1]) is not int or type(answer[3]) is not list:
            raise Away("not an answer")
        for key in await self._tell(link, keys if answer[2] else answer[3]):
            self._count("unanswered", 1 if key else 0)
        if link.number >= 0 or self._watched() == keys:
            link.number = answer[1]

    async def _tell(self, link: _Link, keys: list[bytes]) -> list[bytes]:
        """Tell the watchers of these keys what is there; the keys that got no answer."""
        left = [key for key in keys if type(key) is bytes]
        while left:
            found = await self._call(link, LOOKUP, left[:64], VERB_S)
            self._spent("watch", 1)
            states = _states(found)
            if not states:
                break
            for key, state in states:
                if len(self._links) == 1:
                    self._told(key, state)
                else:  # one directory does not know what the others have
                    for value, expires_s in state.items():
                        self._heard(key, value, expires_s)
                if key in left:
                    left.remove(key)
        return left

    # -- one request ------------------------------------------------------------------

    async def _call(self, link: _Link, op: str, body: Any, deadline_s: float) -> Any:
        """The answer, a list that begins with the epoch. Away when there is none."""
        try:
            answer = await link.call(op, body, deadline_s)
            if type(answer) is not list or len(answer) < 2:
                raise PeerError("bad-field", "answer")
        except (RemoteError, TimeoutError, OSError) as error:
            self._count(getattr(error, "reason", "silent"))
            link.up = False
            if not any(other.up for other in self._links):
                self._set_up(False)
            raise Away(str(error))
        link.up = True
        if op == LOOKUP and type(answer[1]) is int:
            link.owners = answer[1]
        if link.epoch != answer[0]:
            known, link.epoch = link.epoch, answer[0]
            if known is not None:
                self._count("forgotten")
                self._reassert()
        self._set_up(True)
        return answer

    def _more_status(self) -> dict[str, Any]:
        return {
            "peers": max(link.owners for link in self._links),
            "directories": [link.up for link in self._links],
        }


def _states(found: Any) -> list[tuple[bytes, dict[bytes, int]]]:
    """key -> {value: expiry} of an answer to a lookup, as far as it is well-formed."""
    states = []
    rows = found[2] if len(found) > 2 and type(found[2]) is list else []
    for row in rows:
        if type(row) is not list or len(row) != 2 or type(row[1]) is not list:
            continue
        key, flat = row
        pairs = zip(flat[::2], flat[1::2], strict=False)
        if type(key) is bytes:
            states.append((key, {v: t for v, t in pairs if type(v) is bytes and type(t) is int}))
    return states
