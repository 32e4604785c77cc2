"""The C kernels in `natmod/`, for whatever machine this is. Built by tools/natmod.sh.

One file, natmod/kernels_ARCH.mpy, holds them; a board needs only that of its own
architecture. ImportError where there is none, or no native code is loaded at all.
"""

import sys

from ..errors import ModelError
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


accepts = None  # nothing to ask; an attribute that is missing takes longer to look for

_module = _load()
for _name in KERNELS:
    globals()[_name] = getattr(_module, _name)
# Found faster than attributes of the module.
_u32 = _module.u32
_i32 = _module.i32
_follow = _module.follow
_field = _module.field
_table = _module.table
_byte = _module.byte
_integer = _module.integer
_vector = _module.vector
_integers = _module.integers
_tensor = _module.tensor


class Reader(PlainReader):
    """Walks the file with the native module: most of a model's loading time otherwise."""

    def _outside(self) -> ModelError:
        return self.fail("offset outside the file of %d bytes" % self.size)

    def u32(self, at: int) -> int:
        found: int | None = _u32(self.data, at)
        if found is None:
            raise self._outside()
        return found

    def i32(self, at: int) -> int:
        found: int | None = _i32(self.data, at)
        if found is None:
            raise self._outside()
        return found

    def follow(self, at: int) -> int:
        found: int | None = _follow(self.data, at)
        if found is None:
            raise self._outside()
        return found

    def field(self, table: int, number: int) -> int:
        found: int | None = _field(self.data, table, number)
        if found is None:
            raise self._outside()
        return found

    def table(self, table: int, number: int) -> int:
        found: int | None = _table(self.data, table, number)
        if found is None:
            raise self._outside()
        return found

    def byte(self, table: int, number: int, default: int = 0) -> int:
        found: int | None = _byte(self.data, table, number, default)
        if found is None:
            raise self._outside()
        return found

    def integer(self, table: int, number: int, default: int = 0) -> int:
        found: int | None = _integer(self.data, table, number, default)
        if found is None:
            raise self._outside()
        return found

    def vector(self, table: int, number: int, width: int) -> "tuple[int, int]":
        found: tuple[int, int] | None = _vector(self.data, table, number, width)
        if found is None:
            raise self._outside()
        return found

    def integers(self, at: int, count: int) -> "tuple[int, ...]":
        found: tuple[int, ...] | None = _integers(self.data, at, count)
        if found is None:
            raise self._outside()
        return found

    def tensor(self, table: int, buffers: int, count: int) -> "tuple[Any, ...]":
        found: tuple[Any, ...] | None = _tensor(self.data, table, buffers, count)
        if found is None:
            return PlainReader.tensor(self, table, buffers, count)  # says what is wrong
        return found
