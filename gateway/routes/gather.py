"""What a lookup has collected so far: bounded, fair between owners, complete or not.

A medium adds values as they come, from the loop or from one worker thread, and marks
keys as answered. The lookup takes what is there when the work is done or the deadline is
reached. One owner holds at most `PER_OWNER` places under a key. When there are more than
`PER_KEY` values, owners known to the caller come first, then the rest in turns, so a
flood costs the flooder's own visibility and nobody else's.
"""

from collections.abc import Collection, Iterable

from gateway.routes import KEY_SIZE, LIFETIME_MAX_S, PER_KEY, PER_OWNER, VALUE_MAX, Found

# Values of unknown owners kept while collecting; beyond it only known owners are.
_COLLECTED = 4 * PER_KEY


class Gather:
    """keys: what is asked.  now_s: UTC seconds, values expired by then are not taken.
    known: owners of ours (allow-list)."""

    def __init__(
        self,
        keys: Iterable[bytes],
        now_s: float,
        counters: dict[str, int],
        known: Collection[bytes] = (),
    ) -> None:
        self.keys = list(keys)
        self.messages = 0
        self.closed = False  # the deadline has passed: a worker thread may stop
        self._now = now_s
        self._counters = counters
        self.known = frozenset(known)
        self._values: dict[bytes, dict[bytes, dict[bytes, int]]] = {key: {} for key in self.keys}
        self._sizes = dict.fromkeys(self.keys, 0)
        self._done: set[bytes] = set()

    def add(self, key: bytes, value: bytes, expires_s: int, owner: bytes = b"") -> None:
        """Take a value, or count why not. owner: b"" when the medium has no owners."""
        owners = self._values.get(key)
        if owners is None or len(key) != KEY_SIZE:
            return
        if not 0 < len(value) <= VALUE_MAX:
            self.count("wrong_size")
        elif expires_s <= self._now:
            self.count("expired")
        elif expires_s > self._now + LIFETIME_MAX_S + 86400:
            self.count("too_far_ahead")
        else:
            if self._sizes[key] >= _COLLECTED and owner not in self.known:
                self.count("crowded_out")
                return
            mine = owners.setdefault(owner, {})
            if owner and len(mine) >= PER_OWNER and value not in mine:
                self.count("over_owner_cap")
                return
            self._sizes[key] += value not in mine
            mine[value] = max(expires_s, mine.get(value, 0))

    def count(self, reason: str, by: int = 1) -> None:
        self._counters[reason] = self._counters.get(reason, 0) + by

    def done(self, key: bytes) -> None:
        """The medium has given everything that it has under this key."""
        self._done.add(key)

    def all_done(self) -> bool:
        return len(self._done) == len(self.keys)

    def missed(self) -> list[bytes]:
        return [key for key in self.keys if key not in self._done]

    def state(self, key: bytes) -> dict[bytes, int]:
        """value -> expiry, at most PER_KEY: known owners first, then owners in turns."""
        owners = {owner: list(values.items()) for owner, values in list(self._values[key].items())}
        chosen: dict[bytes, int] = {}
        first = self.known & owners.keys()
        for group in (first, owners.keys() - first):
            lists = [owners[o] for o in group]
            turn = 0
            while lists and len(chosen) < PER_KEY:
                for values in lists:
                    if len(chosen) < PER_KEY:
                        chosen.setdefault(*values[turn])
                turn += 1
                lists = [values for values in lists if len(values) > turn]
        return chosen

    def found(self) -> Found:
        return Found({k: list(self.state(k)) for k in self.keys}, self.missed(), self.messages)
