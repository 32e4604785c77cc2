"""The C kernels in `natmod/`, for whatever machine this is. Built by tools/natmod.sh.

One file, natmod/kernels_ARCH.mpy, holds them; a board needs only that of its own
architecture. ImportError where there is none, or no native code is loaded at all.
"""

import sys

from ..flatbuffer import Reader as PlainReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Number of an architecture in .mpy files -> its names, the best for it first. Cortex-M
# takes the code of its smaller relatives.
_NAMES = {
    1: ("x86",),
    2: ("x64",),
    4: ("armv6m",),
    5: ("armv7m", "armv6m"),
    6: ("armv7m", "armv6m"),
    7: ("armv7emsp", "armv7m", "armv6m"),
    8: ("armv7emsp", "armv7m", "armv6m"),
    9: ("xtensa",),
    10: ("xtensawin",),
    11: ("rv32imc",),
}

KERNELS = (
    "add",
    "average_pool_2d",
    "conv_2d",
    "depthwise_conv_2d",
    "fully_connected",
    "lookup",
    "max_pool_2d",
    "mean",
    "mul",
    "multipliers",
    "pad",
    "softmax",
)


def architecture() -> int:
    """Number of the architecture whose native code this interpreter loads; 0: none."""
    version = getattr(sys.implementation, "_mpy", 0)
    return (version >> 10) & 15


def _load() -> "Any":
    package = __name__.rpartition(".kernels.")[0] + ".natmod.kernels_"
    for name in _NAMES.get(architecture(), ()):
        try:
            return __import__(package + name, None, None, KERNELS, 0)
        except (ImportError, ValueError):  # ValueError: made for another version
            pass
    raise ImportError("no native kernels for this machine")


_module = _load()
for _name in KERNELS:
    globals()[_name] = getattr(_module, _name)


class Reader(PlainReader):
    """Walks the file with the native module: most of a model's loading time otherwise."""

    def _checked(self, found: "int | None") -> int:
        if found is None:
            raise self.fail("offset outside the file of %d bytes" % self.size)
        return found

    def _tuple(self, found: "Any") -> "Any":
        if found is None:
            raise self.fail("offset outside the file of %d bytes" % self.size)
        return found

    def u32(self, at: int) -> int:
        return self._checked(_module.u32(self.data, at))

    def i32(self, at: int) -> int:
        return self._checked(_module.i32(self.data, at))

    def follow(self, at: int) -> int:
        return self._checked(_module.follow(self.data, at))

    def field(self, table: int, number: int) -> int:
        return self._checked(_module.field(self.data, table, number))

    def table(self, table: int, number: int) -> int:
        return self._checked(_module.table(self.data, table, number))

    def vector(self, table: int, number: int, width: int) -> "tuple[int, int]":
        found: tuple[int, int] = self._tuple(_module.vector(self.data, table, number, width))
        return found

    def byte(self, table: int, number: int, default: int = 0) -> int:
        return self._checked(_module.byte(self.data, table, number, default))

    def integer(self, table: int, number: int, default: int = 0) -> int:
        return self._checked(_module.integer(self.data, table, number, default))

    def integers(self, at: int, count: int) -> "tuple[int, ...]":
        found: tuple[int, ...] = self._tuple(_module.integers(self.data, at, count))
        return found

    def tensor(self, table: int, buffers: int, count: int) -> "tuple[int, ...]":
        found: tuple[int, ...] | None = _module.tensor(self.data, table, buffers, count)
        if found is None:
            return PlainReader.tensor(self, table, buffers, count)  # says what is wrong
        return found
