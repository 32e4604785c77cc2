"""A route through a directory that all members see: a network share, or one that a tool
keeps in step (Syncthing, rsync, a USB stick carried about).

```
<folder>/<owner hex>/<key hex>/<token hex>      one value
<folder>/<owner hex>/.tmp/                      being written
```

Only the owner writes below its own name, so a tool that copies files never has two
versions to choose from. A value is written to `.tmp`, synced, and renamed into place: a
writer killed at any instruction leaves a whole file or none under a final name. A tool may
still show half a file, a file of zeros or a conflict copy: the header carries length and
CRC-32, names that are not exactly a token are ignored, and what does not check is counted
as `damaged` and read again later. Times of files mean nothing, clocks and tools change
them; the expiry stands in the header (`file.py`). Entries may be anything (a device, a
link, a directory, a gigabyte): only regular files are opened, without following links or
blocking, and at most one byte more than a value can have is read.

A watch polls (`look.py`), every `POLL_S`; a poll that takes long makes the next one later.
Every `FULL_S` it trusts nothing that it remembers, for media whose directories lie about
their times.

Files whose expiry passed a day ago are removed by whoever sees them, so that the dead do
not pile up; an owner whose files vanish before their time writes them again.
"""

import asyncio
import errno
import itertools
import os
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from gateway.routes import KEY_SIZE, OWNER_SIZE, PER_OWNER, RouteError
from gateway.routes.file import ENTRIES, NOFOLLOW, decode, encode, is_hex, list_values, read_file
from gateway.routes.gather import Gather
from gateway.routes.held import Name
from gateway.routes.local import VERB_S, Away, LocalRoute
from gateway.routes.look import Looker

TMP = ".tmp"
POLL_S = 0.2
FULL_S = 10.0
_OWNERS, _STRANGERS = 4096, 64  # owner directories looked at; unknown ones of these
_DEAD_S = 86400
_CHECKED, _BURIED = 250, 20  # own files, and others' directories, looked at per check


class FolderRoute(LocalRoute):
    """folder: exists already, and is where a tool or a share brings the others' files.

    A message is a file operation: a directory listed, a file read, written or removed."""

    name = "folder"
    unit = "file operations"
    check_s = 1.0

    def __init__(
        self, owner: bytes, folder: "Path | str", *, poll_s: float = POLL_S, **options: Any
    ) -> None:
        super().__init__(owner, **options)
        self.folder = Path(folder)
        self.mine = self.folder / owner.hex()
        self.poll_s = poll_s
        self._poll_task: asyncio.Task[None] | None = None
        self._polling = asyncio.Event()
        self._looker = Looker(self.folder, self._count)
        self._serial = 0
        self._unchecked: list[Name] = []
        self._graves = self._all_directories()
        self._owners: list[str] = []

    # -- verbs ------------------------------------------------------------------------

    async def _start(self) -> None:
        try:
            async with asyncio.timeout(VERB_S):
                await self._in_thread("write", self._prepare)
            self._set_up(True)
        except (NotADirectoryError, PermissionError) as error:
            raise RouteError(str(error.strerror), str(self.folder), "Give a folder to write in")
        except (OSError, TimeoutError):
            if not self.folder.parent.exists():
                raise RouteError("no such folder", str(self.folder), "Make it, or mount the share")
        self._poll_task = asyncio.create_task(self._poll())

    async def _stop(self) -> None:
        if self._poll_task is not None:
            self._poll_task.cancel()
            await asyncio.gather(self._poll_task, return_exceptions=True)

    def _prepare(self) -> None:
        """The owner's directory, without what a killed writer left half done."""
        if not self.folder.is_dir():
            reason = NotADirectoryError if self.folder.exists() else FileNotFoundError
            raise reason(errno.ENOTDIR, "no folder", str(self.folder))
        tmp = self.mine / TMP
        tmp.mkdir(parents=True, exist_ok=True)
        for entry in os.scandir(tmp):
            if entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)

    async def _probe(self) -> None:
        await self._in_thread("write", self._prepare)
        self._set_up(True)
        self._unchecked = []

    async def _put(self, key: bytes, token: bytes, value: bytes, expires_s: int) -> bool:
        await self._writing(self._write, key, token, encode(value, expires_s))
        self._spent("announce", 1)
        return True

    async def _drop(self, key: bytes, token: bytes) -> bool:
        await self._writing(self._remove, self.mine / key.hex() / token.hex())
        self._spent("withdraw", 1)
        return True

    async def _writing(self, work: Any, *arguments: Any) -> None:
        try:
            await self._in_thread("write", work, *arguments)
        except OSError:
            self._set_up(False)
            raise

    def _write(self, key: bytes, token: bytes, data: bytes) -> None:
        if not self.folder.is_dir():  # an unmounted share must not be filled underneath
            raise FileNotFoundError(str(self.folder))
        self._serial += 1
        tmp = self.mine / TMP / f"{os.getpid()}-{id(self):x}-{self._serial}"
        home = self.mine / key.hex()
        tmp.parent.mkdir(parents=True, exist_ok=True)
        home.mkdir(exist_ok=True)
        directory = os.open(home, NOFOLLOW | os.O_DIRECTORY)
        try:
            with open(tmp, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(tmp, token.hex(), dst_dir_fd=directory)
            os.fsync(directory)
        except BaseException:
            tmp.unlink(missing_ok=True)
            raise
        finally:
            os.close(directory)

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        try:
            path.parent.rmdir()
        except OSError:
            pass  # other values under this key

    async def _lost(self) -> Iterable[Name]:
        """A part of them at a time, so that looking costs little."""
        if not self._unchecked:
            self._unchecked = [n for n, slot in self._held.slots.items() if slot.value is not None]
        some, self._unchecked = self._unchecked[:_CHECKED], self._unchecked[_CHECKED:]
        await self._in_thread("sweep", self._bury_some)
        return await self._in_thread("write", self._absent, some)

    def _absent(self, names: list[Name]) -> list[Name]:
        return [n for n in names if not (self.mine / n[0].hex() / n[1].hex()).exists()]

    # -- reading ----------------------------------------------------------------------

    async def _fetch(self, gather: Gather) -> None:
        try:
            await self._in_thread("read", self._read_keys, gather)
        except OSError:
            self._set_up(False)
            raise

    def _read_keys(self, gather: Gather) -> None:
        owners = self._list_owners()
        gather.messages += 1
        for key in gather.keys:
            for owner in owners:
                if gather.closed:
                    return
                for value, expires_s in self._read_key(owner, key, gather):
                    gather.add(key, value, expires_s, bytes.fromhex(owner))
            gather.done(key)

    def _list_owners(self) -> list[str]:
        """Owner directories. Where owners are known, few others are looked at."""
        found = {owner.hex(): None for owner in self.known()}
        most = len(found) + _STRANGERS if found else _OWNERS
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if is_hex(entry.name, OWNER_SIZE):
                    found[entry.name] = None
                    if len(found) >= most:
                        break
        self._owners = list(found)
        return self._owners

    def _read_key(self, owner: str, key: bytes, gather: Gather) -> list[tuple[bytes, int]]:
        directory = self.folder / owner / key.hex()
        names = list_values(directory)
        gather.messages += 1
        values = []
        for at, name in enumerate(names, 1):
            data = read_file(directory / name)
            gather.messages += 1
            if data is None:
                continue
            entry = decode(data)
            if entry is None:
                gather.count("damaged")
                continue
            values.append(entry)
            if entry[1] + _DEAD_S < self.clock():
                self._bury(directory / name)
            elif len(values) >= PER_OWNER:
                if at < len(names):
                    gather.count("over_owner_cap", len(names) - at)
                break
        return values

    def _bury_some(self) -> None:
        """A few directories of everybody's, on and on: what expired a day ago goes."""
        try:
            for directory in itertools.islice(self._graves, _BURIED):
                for name in list_values(directory):
                    entry = decode(read_file(directory / name) or b"")
                    if entry is not None and entry[1] + _DEAD_S < self.clock():
                        self._bury(directory / name)
                        self._count("buried")
        except OSError:
            self._graves = self._all_directories()  # the generator has ended

    def _all_directories(self) -> Iterator[Path]:
        while True:
            for owner in self._list_owners():
                for entry in itertools.islice(os.scandir(self.folder / owner), 10 * ENTRIES):
                    if is_hex(entry.name, KEY_SIZE):
                        yield self.folder / owner / entry.name
            yield self.folder  # so that an empty folder ends the turn

    def _bury(self, path: Path) -> None:
        try:
            self._remove(path)
        except OSError:
            pass  # not ours to remove

    # -- watching ---------------------------------------------------------------------

    async def _listen(self, keys: Collection[bytes]) -> None:
        self._polling.set()

    async def _unlisten(self, keys: Collection[bytes]) -> None:
        pass  # the poll drops what nobody watches

    async def _poll(self) -> None:
        full_at = 0.0
        while True:
            if not self._watches.keys:
                self._polling.clear()
                await self._polling.wait()
            started = time.monotonic()
            full = started >= full_at
            keys = frozenset(self._watched())
            try:
                changed = await self._in_thread("poll", self._look, keys, full)
            except (OSError, Away):
                self._set_up(False)
                changed = {}
            else:
                if full:
                    full_at = time.monotonic() + FULL_S
            for key, state in changed.items():
                self._told(key, state)
            took = time.monotonic() - started
            await asyncio.sleep(max(self.poll_s, 2 * took))

    def _look(self, keys: frozenset[bytes], full: bool) -> dict[bytes, dict[bytes, int]]:
        """The state of each key that may have changed. Runs in the poll's own thread."""
        looker = self._looker
        changed = looker.look(self._list_owners(), keys, full, time.monotonic())
        states = {}
        for key in changed:
            gather = self._gather([key])
            for owner, value, expires_s in looker.values(key):
                gather.add(key, value, expires_s, owner)
            states[key] = gather.state(key)
        self.messages["watch"] += looker.take_messages()
        return states

    def _more_status(self) -> dict[str, Any]:
        others = set(self._owners) - {self.owner.hex()}
        return {"peers": len(others), "folder": str(self.folder)}
