"""Noticing what changed in a folder of many owners: polling, as cheap as it can be.

A look at a directory or file is its inode, size and time of change; only whether it differs
from the last look matters, never the time itself. Three levels are compared, and a level is
entered only when it may have changed:

    owner/            when it differs: which of the watched keys are there?
    owner/key/        when it differs: which files?
    owner/key/token   when it differs: read it

"May have changed" includes the seconds after a difference was seen: a file system's
clock has a grain (2 s on FAT), and a second change within it does not show. One poll of
100 owners of whom nobody announced anything is 100 `stat` for the owners, and one for each
watched key that an owner has.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.routes import KEY_SIZE, PER_OWNER
from gateway.routes.file import decode, is_hex, list_values, read_file

FRESH_S = 3.0
_KEYS = 100_000  # directories of one owner looked at

Look = tuple[int, int, int]


def look_of(path: str) -> Look | None:
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


class _Directory:
    """An owner's directory, or that of a key within it."""

    __slots__ = ("changed_at", "files", "keys", "look", "path", "size")

    def __init__(self, path: str) -> None:
        self.path = path
        self.look: Look | None = None
        self.changed_at = 0.0
        self.size = 0  # entries, when last listed
        self.keys: set[bytes] = set()
        self.files: dict[str, tuple[Look, bytes, int]] = {}

    def may_differ(self, look: Look, full: bool, now: float) -> bool:
        if look != self.look:
            self.look, self.changed_at = look, now
        return full or now - self.changed_at <= FRESH_S


class Looker:
    """For one thread. count: called with "damaged" for what is no value."""

    def __init__(self, folder: Path, count: Callable[[str], None]) -> None:
        self._folder = folder
        self._count = count
        self._keys: frozenset[bytes] = frozenset()
        self._homes: dict[str, _Directory] = {}
        self._places: dict[bytes, dict[str, _Directory]] = {}
        self._messages = 0

    def look(self, owners: list[str], keys: frozenset[bytes], full: bool, now: float) -> set[bytes]:
        """Watched keys under which something is different. now: monotonic seconds."""
        changed: set[bytes] = set()
        if keys != self._keys:
            self._keys, full = keys, True
            self._places = {key: p for key, p in self._places.items() if key in keys}
        for owner in self._homes.keys() - set(owners):
            changed |= self._leave(owner, self._homes.pop(owner).keys)
        for owner in owners:
            home = self._homes.get(owner)
            if home is None:
                home = self._homes[owner] = _Directory(str(self._folder / owner))
            there = self._keys_of(home, full, now)
            changed |= self._leave(owner, home.keys - there)
            home.keys = there
            for key in there:
                if self._look_at(owner, home, key, full, now):
                    changed.add(key)
        return changed

    def values(self, key: bytes) -> Iterator[tuple[bytes, bytes, int]]:
        """(owner, value, expiry) of a watched key, as last seen."""
        for owner, place in self._places.get(key, {}).items():
            for _, value, expires_s in place.files.values():
                yield bytes.fromhex(owner), value, expires_s

    def take_messages(self) -> int:
        """File operations since the last call."""
        messages, self._messages = self._messages, 0
        return messages

    def _leave(self, owner: str, keys: set[bytes]) -> set[bytes]:
        """These keys of an owner are gone; those under which there was something."""
        left = set()
        for key in keys:
            place = self._places.get(key, {}).pop(owner, None)
            if place is not None and place.files:
                left.add(key)
        return left

    def _keys_of(self, home: _Directory, full: bool, now: float) -> set[bytes]:
        """Watched keys that an owner has."""
        self._messages += 1
        look = look_of(home.path)
        if look is None:
            home.look = None
            return set()
        if not home.may_differ(look, full, now):
            return home.keys
        if home.size > 4 * len(self._keys):  # asking for each is cheaper than a long list
            self._messages += len(self._keys)
            return {k for k in self._keys if look_of(f"{home.path}/{k.hex()}") is not None}
        found, home.size = set(), 0
        try:
            with os.scandir(home.path) as entries:
                for entry in entries:
                    home.size += 1
                    if is_hex(entry.name, KEY_SIZE):
                        found.add(bytes.fromhex(entry.name))
                    if home.size >= _KEYS:
                        break
        except OSError:
            pass
        return found & self._keys

    def _look_at(self, owner: str, home: _Directory, key: bytes, full: bool, now: float) -> bool:
        self._messages += 1
        owners = self._places.setdefault(key, {})
        place = owners.get(owner)
        if place is None:
            place = owners[owner] = _Directory(f"{home.path}/{key.hex()}")
        look = look_of(place.path)
        if look is None:
            place.look = None
            had, place.files = bool(place.files), {}
            return had
        return place.may_differ(look, full, now) and self._read_changed(place)

    def _read_changed(self, place: _Directory) -> bool:
        names = list_values(place.path)
        different = False
        for name in place.files.keys() - set(names):
            del place.files[name]
            different = True
        for name in names:
            path = f"{place.path}/{name}"
            look = look_of(path)
            old = place.files.get(name)
            if look is None or (old is not None and old[0] == look):
                continue
            self._messages += 1
            data = read_file(path)
            entry = decode(data) if data is not None else None
            if entry is None:
                if data is not None:
                    self._count("damaged")
                different |= place.files.pop(name, None) is not None
            elif len(place.files) < PER_OWNER or name in place.files:
                place.files[name] = (look, *entry)
                different = True
        return different
