"""The C kernels in `natmod/`, for whatever machine this is. Built by tools/natmod.sh.

One file, natmod/kernels_ARCH.mpy, holds them; a board needs only that of its own
architecture. ImportError where there is none, or no native code is loaded at all.
"""

import sys

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
