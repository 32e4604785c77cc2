"""A Store on MicroPython's file systems: littlefs or FAT on a board, the host's on unix.

Theory of operation. On MicroPython `flush` of a file is what makes it durable (lfs_file_sync,
f_sync, or fsync on the unix port), so `sync` is a flush. littlefs commits names with the
files; elsewhere `os.sync` does, where the port has it. The file appended to stays open,
because opening one for appending makes littlefs walk through it.

One program uses a board's flash, so there is no lock; on the unix port do not start two.
MicroPython cannot truncate, and nothing here does.
"""

import errno
import os

from edge_agent.errors import StoreError
from edge_agent.interfaces import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ALLOWED = "abcdefghijklmnopqrstuvwxyz0123456789.-"
_NAME_MAX = 32
_NOSPC = 28

_FIXES = {
    _NOSPC: "Free some flash; nothing that was taken is lost, it is tried again",
    30: "The file system is read-only: mount it for writing",
    5: "The flash is failing: copy the journal away and replace it",
}


def _error(error: OSError, where: str) -> StoreError:
    code = error.errno or 0
    name = errno.errorcode.get(code, "errno %d" % code)
    return StoreError(name, where, _FIXES.get(code, ""), code)


class FlashStore(Store):
    """Files in `directory`, which is made when it does not exist."""

    def __init__(self, directory: str) -> None:
        self.directory = directory = directory.rstrip("/") or "/"
        self._file: Any = None  # open for appending
        self._file_name = ""
        self._new_names: list[str] = []  # made by us, their names not yet synced
        try:
            os.stat(directory)
        except OSError:
            try:
                os.mkdir(directory)
            except OSError as error:
                raise _error(error, directory)

    def _path(self, name: str) -> str:
        good = 0 < len(name) <= _NAME_MAX and name[0] not in ".-"
        for letter in name:
            good = good and letter in _ALLOWED
        if not good:
            raise StoreError("not a file name of a store: %r" % name, self.directory)
        return self.directory + "/" + name

    def size(self, name: str) -> int:
        path = self._path(name)
        try:
            return int(os.stat(path)[6])
        except OSError as error:
            if error.errno == errno.ENOENT:
                return -1
            raise _error(error, path)

    def read(self, name: str, offset: int, length: int) -> bytes:
        path = self._path(name)
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read(length)
        except OSError as error:
            raise _error(error, path)

    def append(self, name: str, data: bytes) -> None:
        path = self._path(name)
        try:
            if self._file_name != name:
                self._open(name, path, "ab")
            self._put(data)
        except OSError as error:
            self._close()
            raise _error(error, path)

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        try:
            self._open(name, path, "wb")
            self._put(data)
        except OSError as error:
            self._close()
            raise _error(error, path)

    def _open(self, name: str, path: str, mode: str) -> None:
        self._close()
        if name not in self._new_names and self.size(name) < 0:
            self._new_names.append(name)
        self._file = open(path, mode)  # noqa: SIM115 - stays open
        self._file_name = name

    def _put(self, data: bytes) -> None:
        done = 0
        while done < len(data):
            count = self._file.write(memoryview(data)[done:] if done else data)
            if not count:
                raise OSError(_NOSPC, "ENOSPC")
            done += count

    def _close(self) -> None:
        file, self._file, self._file_name = self._file, None, ""
        if file is not None:
            file.close()

    def sync(self, name: str) -> None:
        path = self._path(name)
        try:
            if self._file_name != name:
                if self.size(name) < 0:
                    raise OSError(errno.ENOENT, "ENOENT")
                self._open(name, path, "ab")
            self._file.flush()
            if name in self._new_names:
                self._sync_names()
        except OSError as error:
            self._close()
            raise _error(error, path)

    def rename(self, old: str, new: str) -> None:
        source, target = self._path(old), self._path(new)
        try:
            self._close()
            os.rename(source, target)
        except OSError as error:
            raise _error(error, source)

    def remove(self, name: str) -> None:
        path = self._path(name)
        try:
            if self._file_name == name:
                self._close()
            os.remove(path)
        except OSError as error:
            raise _error(error, path)

    def sync_names(self) -> None:
        try:
            self._sync_names()
        except OSError as error:
            raise _error(error, self.directory)

    def _sync_names(self) -> None:
        # littlefs has nothing more to do, and a port without `os.sync` has no other way.
        sync = getattr(os, "sync", None)
        if sync is not None:
            sync()
        self._new_names = []

    def names(self) -> "list[str]":
        try:
            return sorted(os.listdir(self.directory))
        except OSError as error:
            raise _error(error, self.directory)

    def close(self) -> None:
        try:
            self._close()
        except OSError as error:
            raise _error(error, self.directory)
