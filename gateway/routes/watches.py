"""Who watches which key, and what they were told.

Each watched key keeps the set of values that its watchers know. News arrive as the full
state of a key (`told`), or one value at a time (`appeared`, `went`); only what differs
from the known set is passed on. So a medium may repeat itself, lose its connection and
start over, and a watcher still hears of each value once and of each loss once.

Memory is bounded: `PER_KEY` values a key, `WATCH_MAX` keys.
"""

import logging
from collections.abc import Collection, Mapping

from gateway.routes import PER_KEY, WATCH_MAX, Callback, RouteError

log = logging.getLogger("edge_gateway.routes")


class _Key:
    __slots__ = ("handles", "values")

    def __init__(self) -> None:
        self.handles: dict[int, Callback] = {}
        self.values: dict[bytes, int] = {}  # value -> expiry, 0 when the medium keeps time


class Watches:
    """The watches of one route. `counters` gets `callback_errors` and `unseen`."""

    def __init__(self, counters: dict[str, int]) -> None:
        self.counters = counters
        self.keys: dict[bytes, _Key] = {}
        self._handles: dict[int, frozenset[bytes]] = {}
        self._next = 1

    def add(self, keys: Collection[bytes], callback: Callback) -> tuple[int, list[bytes]]:
        """The handle, and the keys that nobody watched before."""
        wanted = frozenset(keys)
        new = [key for key in wanted if key not in self.keys]
        if len(self.keys) + len(new) > WATCH_MAX:
            raise RouteError(
                f"more than {WATCH_MAX} keys watched", "watch", "End watches that are not needed"
            )
        handle, self._next = self._next, self._next + 1
        self._handles[handle] = wanted
        for key in wanted:
            self.keys.setdefault(key, _Key()).handles[handle] = callback
        for key in wanted:
            for value in list(self.keys[key].values):
                if handle in self._handles:
                    self._call(callback, key, value)
        return handle, new

    def remove(self, handle: int) -> list[bytes]:
        """The keys that nobody watches any longer."""
        left = []
        for key in self._handles.pop(handle, frozenset()):
            entry = self.keys[key]
            del entry.handles[handle]
            if not entry.handles:
                del self.keys[key]
                left.append(key)
        return left

    def appeared(self, key: bytes, value: bytes, expires_s: int = 0) -> None:
        entry = self.keys.get(key)
        if entry is None:
            return
        if value in entry.values:
            entry.values[value] = expires_s
        elif len(entry.values) >= PER_KEY:
            self.counters["unseen"] = self.counters.get("unseen", 0) + 1
        else:
            entry.values[value] = expires_s
            self._tell(entry, key, value)

    def went(self, key: bytes, value: bytes) -> None:
        entry = self.keys.get(key)
        if entry is not None and entry.values.pop(value, None) is not None:
            self._tell(entry, key, None)

    def told(self, key: bytes, state: Mapping[bytes, int]) -> None:
        """`state`: everything there is under the key now, value -> expiry."""
        entry = self.keys.get(key)
        if entry is None:
            return
        gone = [value for value in entry.values if value not in state]
        for value in gone:
            del entry.values[value]
        for value, expires_s in state.items():
            self.appeared(key, value, expires_s)
        if gone:
            self._tell(entry, key, None)

    def expire(self, now_s: float) -> None:
        for key, entry in list(self.keys.items()):
            gone = [v for v, expires_s in entry.values.items() if 0 < expires_s <= now_s]
            for value in gone:
                del entry.values[value]
            if gone:
                self._tell(entry, key, None)

    def _tell(self, entry: _Key, key: bytes, value: bytes | None) -> None:
        for handle, callback in list(entry.handles.items()):
            if handle in entry.handles:
                self._call(callback, key, value)

    def _call(self, callback: Callback, key: bytes, value: bytes | None) -> None:
        try:
            callback(key, value)
        except Exception:
            self.counters["callback_errors"] = self.counters.get("callback_errors", 0) + 1
            log.exception("a watcher of %s failed; it stays registered", key.hex())
