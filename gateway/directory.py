"""A gateway as directory for others: the origin side of the http route. Pure but for waiting.

Members put values under keys and ask for them; who puts is known from the signed request,
so owners are kept apart and each has its own limits. The directory understands nothing of
what it keeps, and keeps it in memory: it carries an *epoch*, drawn when it was made and
part of every answer, and members that see a new epoch bring their values again. So it
needs no database, and losing it costs seconds.

Watching is a long poll. Every change has a number; a watcher says up to which number it
knows, and is answered as soon as one of its keys has a later change, or after WAIT_S.
When the log of changes does not reach back that far, the answer is "all may have changed".

Bodies on the wire (CBOR, see peers.py):

    announce  [[key, token, value, expires_s], ...]      -> [epoch, [true or reason, ...]]
    withdraw  [[key, token], ...]                        -> [epoch, number taken]
    lookup    [key, ...]                                 -> [epoch, owners,
                                                            [[key, [value, expires, ...]], ...]]
    watch     [[key, ...], epoch, number, wait_s]        -> [epoch, number, all, [key, ...]]

A lookup leaves out keys that no longer fit into an answer: ask for them again.
"""

import asyncio
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from gateway.peers import ANNOUNCE, LOOKUP, WATCH, WITHDRAW, PeerError, Request
from gateway.routes import (
    HELD_MAX,
    KEY_SIZE,
    LIFETIME_MAX_S,
    LOOKUP_MAX,
    PER_KEY,
    PER_OWNER,
    TOKEN_SIZE,
    VALUE_MAX,
    WATCH_MAX,
)
from gateway.routes.gather import Gather

BATCH_MAX = 64
LOG_MAX = 65_536  # changes remembered
TOLD_MAX = 256  # keys named in one answer to a watcher
WAIT_S = 25.0
BYTES_MAX = 1 << 20  # of values in one answer
WATCHERS_MAX = 64

_Entry = tuple[bytes, int]  # value, expires_s


class Directory:
    """What the members of one network have put here."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.epoch = os.urandom(8)
        self.clock = clock
        self.counters: Counter[str] = Counter()
        self._keys: dict[bytes, dict[bytes, dict[bytes, _Entry]]] = {}
        self._held: Counter[bytes] = Counter()  # owner -> values
        self._number = 0
        self._log: deque[tuple[int, bytes]] = deque(maxlen=LOG_MAX)
        self._news = asyncio.Event()
        self._watchers = 0
        self._swept_s = 0.0

    def handlers(self) -> dict[str, Any]:
        """Operation -> async function of a Request, for serve.peer_app."""
        return {
            ANNOUNCE: self.on_announce,
            WITHDRAW: self.on_withdraw,
            LOOKUP: self.on_lookup,
            WATCH: self.on_watch,
        }

    # -- operations -------------------------------------------------------------------

    async def on_announce(self, request: Request) -> list[Any]:
        taken: list[Any] = []
        for row in _rows(request.body, 4, BATCH_MAX):
            reason = self.put(request.sender, *row)
            taken.append(reason or True)
        return [self.epoch, taken]

    async def on_withdraw(self, request: Request) -> list[Any]:
        rows = _rows(request.body, 2, BATCH_MAX)
        return [self.epoch, sum(self.drop(request.sender, *row) for row in rows)]

    async def on_lookup(self, request: Request) -> list[Any]:
        keys = request.body
        if type(keys) is not list or len(keys) > LOOKUP_MAX or not all(map(_is_key, keys)):
            raise PeerError("bad-field", "keys")
        now = self.clock()
        found: list[Any] = []
        room = BYTES_MAX
        for key in dict.fromkeys(keys):
            flat: list[Any] = []
            for value, expires_s in self.values(key, now).items():
                flat += (value, expires_s)
                room -= len(value) + 64  # so the number of items is bounded too
            if room < 0 and found:
                break
            found.append([key, flat])
        return [self.epoch, len(self._held), found]

    async def on_watch(self, request: Request) -> list[Any]:
        body = request.body
        if type(body) is not list or len(body) != 4:
            raise PeerError("bad-field", "watch")
        keys, epoch, number, wait_s = body
        if type(keys) is not list or len(keys) > WATCH_MAX or not all(map(_is_key, keys)):
            raise PeerError("bad-field", "keys")
        if type(number) is not int or type(wait_s) is not int or not 0 <= wait_s <= WAIT_S:
            raise PeerError("bad-field", "watch")
        if self._watchers >= WATCHERS_MAX:
            raise PeerError("rate-limited", "watchers")
        self._watchers += 1
        try:
            return await self._watch(set(keys), epoch, number, wait_s)
        finally:
            self._watchers -= 1

    async def _watch(self, keys: set[bytes], epoch: Any, number: int, wait_s: float) -> list[Any]:
        until = asyncio.get_running_loop().time() + wait_s
        while True:
            first = self._log[0][0] if self._log else self._number + 1
            if epoch != self.epoch or not first - 1 <= number <= self._number:
                return [self.epoch, self._number, True, []]
            changed: dict[bytes, None] = {}
            for at, key in reversed(self._log):
                if at <= number:
                    break
                if key in keys:
                    changed[key] = None
            left = until - asyncio.get_running_loop().time()
            if len(changed) > TOLD_MAX:
                return [self.epoch, self._number, True, []]
            if changed or left <= 0:
                return [self.epoch, self._number, False, list(changed)]
            number = self._number
            news = self._news
            try:
                async with asyncio.timeout(left):
                    await news.wait()
            except TimeoutError:
                pass

    # -- the table --------------------------------------------------------------------

    def put(self, owner: bytes, key: Any, token: Any, value: Any, expires_s: Any) -> str:
        """ "" when it was taken, else why not."""
        now = self.clock()
        self._sweep(now)
        reason = ""
        if not _is_key(key) or type(token) is not bytes or len(token) != TOKEN_SIZE:
            reason = "bad-field"
        elif type(value) is not bytes or not 0 < len(value) <= VALUE_MAX:
            reason = "wrong-size"
        elif type(expires_s) is not int or not now < expires_s <= now + LIFETIME_MAX_S + 60:
            reason = "expired"
        else:
            mine = self._keys.get(key, {}).get(owner, {})
            if token not in mine and len(mine) >= PER_OWNER:
                reason = "too-many"
            elif token not in mine and self._held[owner] >= HELD_MAX:
                reason = "full"
        if reason:
            self.counters[reason] += 1
            return reason
        mine = self._keys.setdefault(key, {}).setdefault(owner, {})
        self._held[owner] += token not in mine
        if mine.get(token) != (value, expires_s):
            mine[token] = (value, expires_s)
            self._changed(key)
        return ""

    def drop(self, owner: bytes, key: Any, token: Any) -> bool:
        owners = self._keys.get(key) if _is_key(key) else None
        mine = owners.get(owner, {}) if owners is not None else {}
        if owners is None or type(token) is not bytes or token not in mine:
            return False
        del mine[token]
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        if not mine:
            del owners[owner]
        if not owners:
            del self._keys[key]
        self._changed(key)
        return True

    def values(self, key: bytes, now_s: float) -> dict[bytes, int]:
        """value -> expiry, at most PER_KEY, owners in turns."""
        gather = Gather([key], now_s, {})
        for owner, mine in self._keys.get(key, {}).items():
            for value, expires_s in mine.values():
                gather.add(key, value, expires_s, owner)
        return dict(list(gather.state(key).items())[:PER_KEY])

    def close(self) -> None:
        """Let every watcher go: their requests are answered now."""
        self.epoch = os.urandom(8)
        self._wake()

    def status(self) -> dict[str, Any]:
        return {
            "keys": len(self._keys),
            "values": sum(self._held.values()),
            "owners": len(self._held),
            "watchers": self._watchers,
            "refused": dict(self.counters),
        }

    def _changed(self, key: bytes) -> None:
        self._number += 1
        self._log.append((self._number, key))
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _sweep(self, now: float) -> None:
        if now < self._swept_s + 60:
            return
        self._swept_s = now
        over = [
            (owner, key, token)
            for key, owners in self._keys.items()
            for owner, mine in owners.items()
            for token, (_, expires_s) in mine.items()
            if expires_s <= now
        ]
        for name in over:
            self.drop(*name)


def _is_key(key: Any) -> bool:
    return type(key) is bytes and len(key) == KEY_SIZE


def _rows(body: Any, width: int, most: int) -> list[list[Any]]:
    if type(body) is not list or len(body) > most:
        raise PeerError("bad-field", "rows")
    for row in body:
        if type(row) is not list or len(row) != width:
            raise PeerError("bad-field", "row")
    return body
