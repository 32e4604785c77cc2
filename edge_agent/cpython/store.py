"""A `Store` on a directory of a Linux file system, with fsync where it counts.

The directory belongs to one process at a time: an flock on the file `lock`, which also
names the owner. The lock goes with the process, however it ends.

Durability: `sync` does fsync of the file, and of the directory the first time it sees a
name (whoever made that file may have been killed before its name was durable);
`sync_names` does fsync of the directory. After a failed fsync Linux may have thrown
the data away, so nothing here retries: the journal writes such data again elsewhere.
"""

import errno
import fcntl
import os
import re

from edge_agent.errors import StoreError
from edge_agent.interfaces import Store

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,31}\Z")
_LOCK = "lock"
_MAX_READERS = 4  # open handles for reading

_FIXES = {
    errno.ENOSPC: "Free some space; nothing that was taken is lost, it is tried again",
    errno.EDQUOT: "Raise the disk quota; nothing that was taken is lost, it is tried again",
    errno.EFBIG: "Raise the file size limit (ulimit -f); nothing that was taken is lost",
    errno.EROFS: "The file system is read-only: remount it, or choose another journal.path",
    errno.EACCES: "Let this user write there, or choose another journal.path",
    errno.EPERM: "Let this user write there, or choose another journal.path",
    errno.ENOTDIR: "A part of the path is a file: choose another journal.path",
    errno.EIO: "The medium is failing: copy the directory away and replace it",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
}


def _error(error: OSError, where: str) -> StoreError:
    code = error.errno or 0
    # A file that may not grow is as full as a disk.
    reported = errno.ENOSPC if code == errno.EFBIG else code
    return StoreError(error.strerror or str(error), where, _FIXES.get(code, ""), reported)


class FileStore(Store):
    """Files in `directory`, which is made (0700) when it does not exist.

    read_only: for tools that look at a journal while an agent uses it: takes no lock,
    makes nothing, and every change raises StoreError.
    """

    def __init__(self, directory: str, read_only: bool = False) -> None:
        self.directory = directory = os.path.abspath(directory)
        self.read_only = read_only
        self._lock = -1
        self._writer = -1
        self._writer_name = ""
        self._readers: dict[str, int] = {}
        self._durable_names: set[str] = set()
        self._directory = -1
        try:
            if not read_only:
                self._make(directory)
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            if not read_only:
                self._take_lock()
        except OSError as error:
            self.close()
            raise _error(error, directory) from error
        except StoreError:
            self.close()
            raise

    @staticmethod
    def _make(directory: str) -> None:
        if os.path.isdir(directory):
            return
        os.makedirs(directory, mode=0o700, exist_ok=True)
        os.chmod(directory, 0o700)
        parent = os.open(os.path.dirname(os.path.abspath(directory)), os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)

    def _take_lock(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._lock = os.open(_LOCK, flags, 0o600, dir_fd=self._directory)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip()
            os.close(self._lock)
            self._lock = -1
            raise StoreError(
                "in use by process " + (owner or "(unknown)"),
                self.directory,
                "Stop it first, or give this agent a journal.path of its own",
                errno.EWOULDBLOCK,
            ) from None
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)
        except OSError as error:
            if error.errno != errno.ENOSPC:  # the lock holds without the number in it
                raise

    def _path(self, name: str) -> str:
        if not _NAME.match(name) or name == _LOCK:
            raise StoreError("not a file name of a store: %r" % name, self.directory)
        return os.path.join(self.directory, name)

    def _change(self, name: str) -> str:
        path = self._path(name)
        if self.read_only:
            raise StoreError("opened for reading only", path, "", errno.EROFS)
        if self._directory < 0:
            raise StoreError("the store is closed", path, "", errno.EBADF)
        return path

    def size(self, name: str) -> int:
        path = self._path(name)
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            return -1
        except OSError as error:
            raise _error(error, path) from error

    def read(self, name: str, offset: int, length: int) -> bytes:
        path = self._path(name)
        try:
            fd = self._readers.get(name, -1)
            if fd < 0:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                if len(self._readers) >= _MAX_READERS:
                    os.close(self._readers.pop(next(iter(self._readers))))
                self._readers[name] = fd
            return os.pread(fd, length, offset)
        except OSError as error:
            raise _error(error, path) from error

    def _open_writer(self, name: str, path: str, flags: int) -> int:
        self._close_writer()
        flags |= os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        if name in self._durable_names and not os.path.exists(path):
            self._durable_names.discard(name)
        self._writer = os.open(path, flags, 0o600)
        self._writer_name = name
        return self._writer

    def _close_writer(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
        self._writer = -1
        self._writer_name = ""

    def append(self, name: str, data: bytes) -> None:
        path = self._change(name)
        try:
            fd = self._writer
            if self._writer_name != name:
                fd = self._open_writer(name, path, os.O_APPEND)
            self._put(fd, data)
        except OSError as error:
            raise _error(error, path) from error

    def write(self, name: str, data: bytes) -> None:
        path = self._change(name)
        try:
            fd = self._open_writer(name, path, os.O_APPEND)
            os.ftruncate(fd, 0)
            self._put(fd, data)
        except OSError as error:
            raise _error(error, path) from error

    @staticmethod
    def _put(fd: int, data: bytes) -> None:
        done = 0
        while done < len(data):
            done += os.write(fd, data[done:] if done else data)

    def sync(self, name: str) -> None:
        path = self._change(name)
        try:
            if self._writer_name == name:
                os.fsync(self._writer)
            else:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
            if name not in self._durable_names:
                os.fsync(self._directory)
                self._durable_names.add(name)
        except OSError as error:
            self._close_writer()
            raise _error(error, path) from error

    def _forget(self, name: str) -> None:
        if self._writer_name == name:
            self._close_writer()
        fd = self._readers.pop(name, -1)
        if fd >= 0:
            os.close(fd)
        self._durable_names.discard(name)

    def rename(self, old: str, new: str) -> None:
        path = self._change(old)
        target = self._change(new)
        try:
            self._forget(old)
            self._forget(new)
            os.replace(path, target)
        except OSError as error:
            raise _error(error, path) from error

    def remove(self, name: str) -> None:
        path = self._change(name)
        try:
            self._forget(name)
            os.unlink(path)
        except OSError as error:
            raise _error(error, path) from error

    def sync_names(self) -> None:
        if self.read_only or self._directory < 0:
            return
        try:
            os.fsync(self._directory)
        except OSError as error:
            raise _error(error, self.directory) from error

    def names(self) -> list[str]:
        try:
            found = os.listdir(self.directory)
        except OSError as error:
            raise _error(error, self.directory) from error
        return [n for n in found if _NAME.match(n) and n != _LOCK]

    def close(self) -> None:
        self._close_writer()
        for fd in self._readers.values():
            os.close(fd)
        self._readers = {}
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1
        if self._lock >= 0:
            os.close(self._lock)  # and with it the flock
            self._lock = -1
