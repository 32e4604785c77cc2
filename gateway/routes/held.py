"""A gateway's own announcements: what it wants the medium to hold.

Each slot, named by (key, token), is a wish: a value until an expiry, or nothing (withdrawn).
`due` are the slots whose wish the medium is not known to have taken. An expired wish becomes
a withdrawal, so that the medium is swept by its owner. `hidden` remembers what a slot held
before, until it would have expired anyway: a medium that forgets slowly must not make a
gateway see its own withdrawn values.
"""

import heapq

from gateway.routes import HELD_MAX, LIFETIME_MAX_S, PER_OWNER, RouteError

Name = tuple[bytes, bytes]  # key, token
_HIDDEN = 8
# A withdrawal that the medium does not take is given up after this long.
_WITHDRAWAL_S = 86400


class Slot:
    __slots__ = ("expires_s", "hidden", "value", "version")

    def __init__(self) -> None:
        self.value: bytes | None = None
        self.expires_s = 0
        self.version = 0  # grows with each wish
        self.hidden: dict[bytes, int] = {}


class Held:
    """Wishes and their state. Pure: time is an argument, in UTC seconds."""

    def __init__(self) -> None:
        self.slots: dict[Name, Slot] = {}
        self.due: dict[Name, None] = {}  # in the order they became due
        self.live = 0
        self._keys: dict[bytes, dict[bytes, Slot]] = {}
        self._times: list[tuple[int, Name]] = []

    def want(self, name: Name, value: bytes, expires_s: int, now_s: float) -> None:
        """RouteError when a limit is reached; nothing has changed then."""
        if not now_s < expires_s <= now_s + LIFETIME_MAX_S:
            raise RouteError(
                f"expiry {expires_s} is past or more than {LIFETIME_MAX_S} s ahead",
                "announce",
                "Give an absolute UTC time in seconds",
            )
        slot = self.slots.get(name)
        if slot is None or slot.value is None:
            mine = sum(s.value is not None for s in self._keys.get(name[0], {}).values())
            if mine >= PER_OWNER:
                raise RouteError(f"{PER_OWNER} own values under one key", "announce", "Split it")
            if self.live >= HELD_MAX or (slot is None and len(self.slots) >= 2 * HELD_MAX):
                raise RouteError(f"{HELD_MAX} announcements held", "announce", "Withdraw some")
            slot = self._slot(name)
            self.live += 1
        self._hide(slot, now_s)
        slot.hidden.pop(value, None)
        slot.value, slot.expires_s = value, expires_s
        self._changed(name, slot)

    def drop(self, name: Name, now_s: float) -> None:
        slot = self._slot(name)
        self._hide(slot, now_s)
        if slot.value is not None:
            self.live -= 1
        slot.value = None
        slot.expires_s = int(now_s) + _WITHDRAWAL_S
        self._changed(name, slot)

    def delivered(self, name: Name, version: int, now_s: float) -> None:
        """The medium has taken the wish of that version."""
        slot = self.slots.get(name)
        if slot is None or slot.version != version:
            return
        self.due.pop(name, None)
        if slot.value is None:
            # Kept only as long as there is something to hide.
            slot.expires_s = max(slot.hidden.values(), default=0)
            heapq.heappush(self._times, (slot.expires_s, name))

    def postpone(self, name: Name) -> None:
        """The medium did not take it: everything else that is due comes first."""
        if name in self.due:
            del self.due[name]
            self.due[name] = None

    def again(self, names: "list[Name] | None" = None) -> None:
        """The medium has lost these (None: everything): they are due once more."""
        for name in list(self.slots) if names is None else names:
            slot = self.slots.get(name)
            if slot is not None and slot.value is not None:
                self.due[name] = None

    def expire(self, now_s: float) -> None:
        """Expired wishes become withdrawals, finished withdrawals are forgotten."""
        while self._times and self._times[0][0] <= now_s:
            _, name = heapq.heappop(self._times)
            slot = self.slots.get(name)
            if slot is None or slot.expires_s > now_s:
                continue
            if slot.value is not None:
                self.drop(name, now_s)
            else:
                del self.slots[name]
                self.due.pop(name, None)
                of_key = self._keys[name[0]]
                del of_key[name[1]]
                if not of_key:
                    del self._keys[name[0]]

    def values(self, key: bytes, now_s: float) -> dict[bytes, int]:
        """Own live values under a key -> expiry."""
        return {
            s.value: s.expires_s
            for s in self._keys.get(key, {}).values()
            if s.value is not None and s.expires_s > now_s
        }

    def entries(self, key: bytes) -> dict[bytes, Slot]:
        """token -> slot of a key, withdrawn ones (value None) included."""
        return self._keys.get(key, {})

    def hidden(self, key: bytes) -> set[bytes]:
        """Own values under a key that were withdrawn or replaced."""
        return {value for slot in self._keys.get(key, {}).values() for value in slot.hidden}

    def _slot(self, name: Name) -> Slot:
        slot = self.slots.get(name)
        if slot is None:
            slot = self.slots[name] = self._keys.setdefault(name[0], {})[name[1]] = Slot()
        return slot

    def _hide(self, slot: Slot, now_s: float) -> None:
        if slot.value is not None and slot.expires_s > now_s:
            slot.hidden[slot.value] = slot.expires_s
        slot.hidden = {v: t for v, t in slot.hidden.items() if t > now_s}
        while len(slot.hidden) > _HIDDEN:
            del slot.hidden[next(iter(slot.hidden))]

    def _changed(self, name: Name, slot: Slot) -> None:
        slot.version += 1
        self.due[name] = None
        heapq.heappush(self._times, (slot.expires_s, name))
