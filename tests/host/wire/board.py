"""What a simulated device is made of, besides its flash: power, clock, chance, a model."""

from collections.abc import Callable
from random import Random
from typing import Any

from sim_flash import PowerCut, SimFlash

from edge_agent import interfaces
from edge_agent.interfaces import ModelOutput


class Dark(BaseException):
    """The power is gone: no code of the agent handles it."""


class Mains(interfaces.Store):
    """The flash, whose power cuts no `except Exception` can catch."""

    def __init__(self, flash: SimFlash) -> None:
        self._flash = flash

    def _do(self, name: str, *values: Any) -> Any:
        try:
            return getattr(self._flash, name)(*values)
        except PowerCut:
            raise Dark

    def size(self, name: str) -> int:
        return self._do("size", name)

    def read(self, name: str, offset: int, length: int) -> bytes:
        return self._do("read", name, offset, length)

    def append(self, name: str, data: bytes) -> None:
        self._do("append", name, data)

    def write(self, name: str, data: bytes) -> None:
        self._do("write", name, data)

    def sync(self, name: str) -> None:
        self._do("sync", name)

    def rename(self, old: str, new: str) -> None:
        self._do("rename", old, new)

    def remove(self, name: str) -> None:
        self._do("remove", name)

    def sync_names(self) -> None:
        self._do("sync_names")

    def names(self) -> list[str]:
        return self._do("names")

    def close(self) -> None:
        pass


class Seeded(interfaces.Entropy):
    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def bytes(self, n: int) -> bytes:
        return self._rng.randbytes(n)


class Clock(interfaces.Clock):
    """Uptime by virtual time. offset_s: what the device thinks UTC is, None: not known."""

    def __init__(self, time: Any, started: int, utc_s: "Callable[[], int]") -> None:
        self._time = time
        self._started = started
        self._utc_s = utc_s

    def uptime_ms(self) -> int:
        return self._time.now - self._started

    def utc_s(self) -> int:
        return self._utc_s()


class Model(interfaces.Model):
    """Gives whatever output was put into `next`."""

    model_id = b"\x5amodel\x00\x01"
    input_length = 8

    def __init__(self, labels: int) -> None:
        self.labels = labels
        self.next = ModelOutput(b"", b"", 0)

    def run(self, features: bytes) -> ModelOutput:
        return self.next
