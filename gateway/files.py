"""Small files that must be whole and private."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from edge_agent.errors import ConfigError, StoreError


def write_private(path: Path, data: "bytes | str", exclusive: bool = False) -> None:
    """Replace `path` in one step, mode 0600, durable when this returns.

    exclusive: refuse when the file is there already. Raises StoreError.
    """
    raw = data.encode() if isinstance(data, str) else data
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.fchmod(fd, 0o600)
            with os.fdopen(fd, "wb", closefd=False) as file:
                file.write(raw)
            os.fsync(fd)
        finally:
            os.close(fd)
        if exclusive:
            os.link(part, path)
        else:
            os.rename(part, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise StoreError("is there already", str(path), "Name another file or remove it", 17)
    except OSError as error:
        raise StoreError(
            error.strerror or str(error), str(path), "Check the folder", error.errno or 0
        )
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def read_private(path: Path) -> bytes:
    """The content of a secret file; refuses one that others can read."""
    try:
        mode = path.stat().st_mode & 0o077
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            error.strerror or str(error), str(path), "Run `edge-gateway init` or restore the file"
        )
    if mode:
        raise ConfigError("others can read this secret", str(path), f"Run: chmod 600 {path}")
    return raw


def only_one(path: Path) -> int:
    """A lock that dies with this process; the descriptor to close. StoreError when held."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            error.strerror or str(error), str(path), "Check the folder", error.errno or 0
        )
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise StoreError(
            "another process does this already", str(path), "Stop it first", errno.EBUSY
        )
    return fd
