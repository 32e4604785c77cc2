"""Lets go of what only starting needs: the reader of configurations, the loader of models,
what opens a journal.

Code that was read into RAM goes altogether, of code in ROMFS its objects. A module that is
needed again is imported again: functions that want one import it when they are called.
What is in use stays, because something still points there.
"""

import gc
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Modules that nothing imports at its top except others of these. Kernels that are called
# in every run are held by the loaded model, native ones by their own module.
START_ONLY = (
    "edge_agent.config_fields",
    "edge_agent.journal_start",
    "mpy_port.tflite.loading",
    "mpy_port.tflite.outputs",
    "mpy_port.tflite.op_resolver",
    "mpy_port.tflite.op_values",
    "mpy_port.tflite.op_window",
    "mpy_port.tflite.operands",
    "mpy_port.tflite.planner",
    "mpy_port.tflite.flatbuffer",
    "mpy_port.tflite.quantize",
    "mpy_port.tflite.names",
    "mpy_port.tflite.kernels.native",
    "mpy_port.tflite.kernels.viper",
    "mpy_port.tflite.kernels.python",
    "mpy_port.tflite.kernels",
)
_SLOW = ("mpy_port.tflite.kernels.python", "mpy_port.tflite.kernels.viper")


def unload() -> None:
    """Forget these modules; once configuration and model are loaded. MicroPython only."""
    modules: Any = sys.modules
    busy: tuple[str, ...] = ()
    for name in _SLOW:
        if name in modules:  # its kernels may be in use, and use what is in the others
            busy = START_ONLY[2:]
    for name in START_ONLY:
        if name not in modules:
            continue
        if name not in busy:
            # The collector looks at the stack as well, where an old pointer may lie about:
            # then at least what the module holds can go.
            modules[name].__dict__.clear()
        # MicroPython's dictionaries keep the value of a deleted entry: it would stay alive.
        modules[name] = None
        del modules[name]
        package, _, own = name.rpartition(".")
        holder = modules.get(package)
        if holder is not None and hasattr(holder, own):
            setattr(holder, own, None)
            delattr(holder, own)
    gc.collect()
