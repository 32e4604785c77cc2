"""A flash file system in RAM that loses power: a `Store` for tests, on both interpreters.

What `sync` has not confirmed is volatile. `power_cycle` decides, from a seed, what of it
survives: any subset of the sectors written since the last sync, the others as they were,
blank, zero or garbage; a tail cut at any byte; names made, removed or renamed since the
last sync of theirs, or not. That is worse than littlefs or ext4 do it, on purpose.

Every change of the medium is an operation; `cut_at = k` cuts the power during the k-th
one from now. `on_change` is called before each, which allows a test to try every cut of
a workload in one pass: clone, cut, restart, check.

Costs follow littlefs with 4 KiB blocks and 256-byte pages, as a model, not a measurement:
an append copies the part of the last block that is in use to a freshly erased block;
files up to 256 bytes live in the directory; each sync commits a directory entry, and
every 7th erases a directory block. Beside real littlefs (benchmarks/journal.py shows both) it
is about 3 % off.
"""

from edge_agent.errors import StoreError
from edge_agent.interfaces import Entropy, Store

SECTOR = 128
BLOCK = 4096
PAGE = 256
INLINE = 256
COMMIT = 256  # bytes programmed for one directory commit
COMMITS_PER_ERASE = 7

ENOENT = 2
ENOSPC = 28


class PowerCut(Exception):
    """The power went. Nothing works until `power_cycle`."""


class Prng(Entropy):
    """xorshift32: the same sequence on every interpreter."""

    def __init__(self, seed: int) -> None:
        self.state = (seed * 2654435761 + 88172645) & 0xFFFFFFFF or 1
        for _ in range(4):
            self.below(2)

    def below(self, n: int) -> int:
        x = self.state
        x ^= (x << 13) & 0xFFFFFFFF
        x ^= x >> 17
        x ^= (x << 5) & 0xFFFFFFFF
        self.state = x
        return (x >> 8) % n

    def bytes(self, n: int) -> bytes:
        return bytes([self.below(256) for _ in range(n)])


class File:
    """data: what a reader sees.  synced: how much of it is durable.  old: the durable
    content under a replacement that was not synced yet."""

    __slots__ = ("data", "old", "synced")

    def __init__(self) -> None:
        self.data = bytearray()
        self.synced = 0
        self.old = None

    def copy(self):
        f = File()
        f.data = bytearray(self.data)
        f.synced = self.synced
        f.old = self.old
        return f


class SimFlash(Store):
    """seed: of what survives.  capacity: in blocks, 0 = unlimited."""

    def __init__(self, seed: int = 0, capacity: int = 0) -> None:
        self.prng = Prng(seed)
        self.capacity = capacity
        self.files: dict[str, File] = {}
        self.durable: dict[str, File] = {}
        self.undone: list[tuple] = []  # changes of names since their last sync
        self.dead = False
        self.cut_at = -1
        self.on_change = None
        self.changes = 0
        self.listed = 0  # calls of names()
        self.reads = 0
        self.erases = 0
        self.programmed = 0
        self._commits = 0

    # -- cuts ---------------------------------------------------------------

    def _change(self) -> bool:
        """Count an operation; True when the power goes during it."""
        if self.dead:
            raise PowerCut()
        if self.on_change is not None:
            self.on_change()
        self.changes += 1
        self.cut_at -= 1
        if self.cut_at == 0:
            self.dead = True
            return True
        return False

    def clone(self) -> "SimFlash":
        """An independent copy, volatile layer included."""
        other = SimFlash()
        copies = {}
        for names in (self.files, self.durable):
            for f in names.values():
                copies[id(f)] = f.copy()
        for change in self.undone:
            if change[0] == "create" and id(change[2]) not in copies:
                copies[id(change[2])] = change[2].copy()
        other.files = {name: copies[id(f)] for name, f in self.files.items()}
        other.durable = {name: copies[id(f)] for name, f in self.durable.items()}
        other.undone = [
            (c[0], c[1], copies[id(c[2])]) if c[0] == "create" else c for c in self.undone
        ]
        other.capacity = self.capacity
        other.prng.state = self.prng.state
        return other

    def power_cycle(self, seed: int = -1) -> "SimFlash":
        """The store as the next start finds it. The old object is of no use any more."""
        prng = self.prng if seed < 0 else Prng(seed)
        names = dict(self.durable)
        for change in self.undone:
            if prng.below(2):
                _apply(names, change)
        after = SimFlash()
        after.capacity = self.capacity
        after.prng = prng
        after.erases, after.programmed = self.erases, self.programmed
        for name in sorted(names):
            f = File()
            f.data = bytearray(_survivors(names[name], prng))
            f.synced = len(f.data)
            after.files[name] = f
        after.durable = dict(after.files)
        return after

    # -- Store --------------------------------------------------------------

    def _get(self, name: str) -> File:
        if self.dead:
            raise PowerCut()
        if name not in self.files:
            raise StoreError("no such file", name, "", ENOENT)
        return self.files[name]

    def size(self, name: str) -> int:
        if self.dead:
            raise PowerCut()
        return len(self.files[name].data) if name in self.files else -1

    def read(self, name: str, offset: int, length: int) -> bytes:
        self.reads += 1
        return bytes(self._get(name).data[offset : offset + length])

    def _make(self, name: str) -> File:
        if name not in self.files:
            f = File()
            self.files[name] = f
            self.undone.append(("create", name, f))
        return self.files[name]

    def _room(self, name: str, size: int) -> None:
        if not self.capacity or not _blocks(size):
            return
        used = 0
        for other in self.files:
            if other != name:
                f = self.files[other]
                used += _blocks(len(f.data)) + (_blocks(len(f.old)) if f.old else 0)
        if used + _blocks(size) > self.capacity:
            raise StoreError("no space left", name, "", ENOSPC)

    def append(self, name: str, data: bytes) -> None:
        cut = self._change()
        have = max(0, self.size_of(name))
        try:
            self._room(name, have + len(data))
        except StoreError:
            f = self._make(name)
            f.data += data[: self.prng.below(len(data) + 1)]
            raise
        f = self._make(name)
        if cut:
            f.data += data[: self.prng.below(len(data) + 1)]
            raise PowerCut()
        f.data += data

    def size_of(self, name: str) -> int:
        return len(self.files[name].data) if name in self.files else -1

    def write(self, name: str, data: bytes) -> None:
        cut = self._change()
        # Copy on write: the old content stays until the sync.
        self._room("", len(data))
        f = self._make(name)
        if f.old is None:
            f.old = bytes(f.data[: f.synced])
        f.data = bytearray(data)
        f.synced = 0
        if cut:
            f.data = bytearray(data[: self.prng.below(len(data) + 1)])
            raise PowerCut()

    def sync(self, name: str) -> None:
        if self._change():
            raise PowerCut()
        f = self._get(name)
        self._cost(f)
        f.synced = len(f.data)
        f.old = None
        self.durable[name] = f
        left = []
        for change in self.undone:
            if change[0] == "create" and change[1] == name:
                continue
            if change[0] == "rename" and change[2] == name:
                self.durable.pop(change[1], None)
                continue
            left.append(change)
        self.undone = left

    def rename(self, old: str, new: str) -> None:
        cut = self._change()
        f = self._get(old)
        if not cut or self.prng.below(2):
            del self.files[old]
            self.files[new] = f
            self.undone.append(("rename", old, new))
        if cut:
            raise PowerCut()

    def remove(self, name: str) -> None:
        cut = self._change()
        self._get(name)
        if not cut or self.prng.below(2):
            del self.files[name]
            self.undone.append(("remove", name))
        if cut:
            raise PowerCut()

    def sync_names(self) -> None:
        if self._change():
            raise PowerCut()
        for _ in self.undone:
            self._commit()
        self.durable = dict(self.files)
        self.undone = []

    def names(self) -> "list[str]":
        self.listed += 1
        return list(self.files)

    def close(self) -> None:
        pass

    # -- damage, for tests --------------------------------------------------

    def flip(self, name: str, offset: int, mask: int = 1) -> None:
        """Change a byte as a worn cell would."""
        self.files[name].data[offset] ^= mask

    # -- costs --------------------------------------------------------------

    def _commit(self) -> None:
        self.programmed += COMMIT
        self._commits += 1
        if self._commits % COMMITS_PER_ERASE == 0:
            self.erases += 1

    def _cost(self, f: File) -> None:
        size = len(f.data)
        if size > INLINE:
            start = 0 if f.old is not None else f.synced
            if start <= INLINE:
                start = 0
            if size > start:
                first = start - start % BLOCK
                self.erases += (size - 1) // BLOCK - first // BLOCK + 1
                self.programmed += -(-(size - first) // PAGE) * PAGE
        else:
            self.programmed += size
        self._commit()


def _blocks(size: int) -> int:
    return 0 if size <= INLINE else -(-size // BLOCK)


def _apply(names, change) -> None:
    if change[0] == "create":
        names[change[1]] = change[2]
    elif change[0] == "remove":
        names.pop(change[1], None)
    elif change[1] in names:
        names[change[2]] = names.pop(change[1])


def _survivors(f: File, prng: Prng) -> bytes:
    """The content after a cut: the durable part, and some of the rest."""
    if f.old is None and f.synced == len(f.data):
        return bytes(f.data)
    before = bytes(f.data[: f.synced]) if f.old is None else f.old
    keep = f.synced if f.old is None else 0
    new = bytes(f.data)
    mode = prng.below(8)
    if mode == 0:
        return before
    if mode == 1:
        return new
    if mode == 2:  # cut at any byte
        cut = keep + prng.below(len(new) - keep + 1)
        return new[:cut] + (before[cut:] if prng.below(2) else b"")
    out = bytearray(new)
    if mode == 3 and len(before) > len(new):
        out += before[len(new) :]
    at = keep
    while at < len(out):
        end = min(len(out), (at // SECTOR + 1) * SECTOR)
        fate = prng.below(8)
        if fate == 0:
            out[at:end] = bytes(end - at)
        elif fate == 1:
            out[at:end] = b"\xff" * (end - at)
        elif fate == 2:
            out[at:end] = prng.bytes(end - at)
        elif fate == 3:
            old = before[at:end]
            out[at : at + len(old)] = old
            if len(old) < end - at:
                out[at + len(old) : end] = bytes(end - at - len(old))
        elif fate == 4:  # torn within the sector
            cut = at + prng.below(end - at)
            out[cut:end] = b"\xff" * (end - cut)
        at = end
    if mode == 4:
        out = out[: keep + prng.below(len(out) - keep + 1)]
    return bytes(out)
