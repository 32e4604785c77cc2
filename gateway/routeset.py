"""Several routes used as one: announce everywhere, ask everywhere, believe the union.

A key counts as answered when one route answered it: routes are alternatives, not shards.
A route that is away, or at one of its limits, costs nothing but itself; what it refused
is counted. With one route this adds nothing.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from gateway.routes import Callback, Found, Route, RouteError

log = logging.getLogger("gateway.route")


class RouteSet:
    """Routes that are opened and closed together. The verbs are those of routes.Route."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = list(routes)
        self.refused: Counter[str] = Counter()  # "route: what" -> times
        self._handles: dict[int, list[tuple[Route, int]]] = {}
        self._next = 1

    async def open(self) -> None:
        """RouteError when one of them is set up wrongly; the others are closed again."""
        try:
            await asyncio.gather(*(route.open() for route in self.routes))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await asyncio.gather(*(route.close() for route in self.routes), return_exceptions=True)

    async def announce(self, key: bytes, value: bytes, expires_s: int, token: bytes) -> bool:
        """True when at least one medium has it."""
        return await self._each(lambda route: route.announce(key, value, expires_s, token))

    async def withdraw(self, key: bytes, token: bytes) -> bool:
        return await self._each(lambda route: route.withdraw(key, token))

    async def _each(self, verb: Callable[[Route], Awaitable[bool]]) -> bool:
        async def one(route: Route) -> bool:
            try:
                return await verb(route)
            except RouteError as error:
                self.refused[f"{route.name}: {error.what}"] += 1
                log.debug("%s refused: %s", route.name, error)
                return False

        return any(await asyncio.gather(*map(one, self.routes)))

    async def lookup(self, keys: Sequence[bytes], deadline_s: float) -> Found:
        if len(self.routes) == 1:
            return await self.routes[0].lookup(keys, deadline_s)
        parts = await asyncio.gather(*(r.lookup(keys, deadline_s) for r in self.routes))
        values = {
            key: list(dict.fromkeys(v for part in parts for v in part.values.get(key, ())))
            for key in dict.fromkeys(keys)
        }
        # Without a route nobody answers.
        missed = set.intersection(*(set(part.missed) for part in parts)) if parts else set(values)
        order = [key for key in values if key in missed]
        return Found(values, order, sum(part.messages for part in parts))

    async def watch(self, keys: Collection[bytes], callback: Callback) -> int:
        """The same value may be told once by each route."""
        handle, self._next = self._next, self._next + 1
        self._handles[handle] = []
        for route in self.routes:
            try:
                self._handles[handle].append((route, await route.watch(keys, callback)))
            except RouteError as error:
                self.refused[f"{route.name}: {error.what}"] += 1
        return handle

    async def unwatch(self, handle: int) -> None:
        for route, inner in self._handles.pop(handle, []):
            await route.unwatch(inner)

    def status(self) -> list[dict[str, Any]]:
        return [route.status() for route in self.routes]
