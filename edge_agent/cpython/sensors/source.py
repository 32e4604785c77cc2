"""Bytes of a file, a named pipe or standard input, as they come."""

import asyncio
import os
import stat

from edge_agent.errors import SensorError

_CHUNK = 65536


class Source:
    """stall_s: a pipe that is silent for so long has stopped; 0 = never.  advice: what to look
    at then. SensorError when it cannot be opened or read, or has stopped; `chunk` may be called
    again afterwards.
    """

    def __init__(self, path: str, stall_s: int, advice: str) -> None:
        self._path, self._stall_s, self._advice = path, stall_s, advice
        self._fd = -1
        try:
            if path == "-":
                self._fd = os.dup(0)
            else:
                # Non-blocking so that a named pipe without a writer opens at once.
                self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            mode = os.fstat(self._fd).st_mode
        except OSError as error:
            raise SensorError(
                error.strerror or "cannot be read", path, "Check sensor.path"
            ) from None
        if stat.S_ISDIR(mode):
            self.close()
            raise SensorError("is a directory", path, "Name a file, or - for standard input")
        self._pollable = not stat.S_ISREG(mode)

    async def chunk(self) -> bytes:
        """What there is, as soon as there is something; nothing once it has ended."""
        if self._fd < 0:
            return b""
        if self._pollable:
            try:
                await asyncio.wait_for(_readable(self._fd), self._stall_s or None)
            except PermissionError:  # a device that cannot be waited for, like /dev/null
                self._pollable = False
            except TimeoutError:
                raise SensorError(
                    f"silent for {self._stall_s} s", self._path, self._advice
                ) from None
        try:
            return os.read(self._fd, _CHUNK)
        except OSError as error:
            raise SensorError(error.strerror or "cannot be read", self._path) from None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
