"""Runs an int8 `.tflite` model.

Theory of operation. Loading (loading.py, imported when it is needed) turns each operator
into a kernel and its arguments; `invoke` only calls them in turn. Weights stay in the
model's own memory (flash, when the model is a frozen module or lies in ROMFS).

The input's memory is reused while the model runs: write it before every invocation.
"""

from .errors import ModelError
from .memory import raw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .operands import Step

ARENA_LIMIT = 64 << 20  # bytes; a model that wants more is no model for this library


class TensorInfo:
    """What a caller needs to know of an input or output.

    shape: tuple.  size: bytes.  type: "int8", "uint8" or "float32".
    scale (a float) and zero_point: real value = scale * (stored - zero_point).
    scale_bits: the float32 bits of the scale, the same on every machine.
    """

    def __init__(
        self,
        where: str,
        shape: "tuple[int, ...]",
        size: int,
        kind: str,
        scale_bits: int,
        scale: float,
        zero_point: int,
    ) -> None:
        self.where, self.shape, self.size, self.type = where, shape, size, kind
        self.scale_bits, self.scale, self.zero_point = scale_bits, scale, zero_point


class Interpreter:
    """One loaded model.

    model: bytes-like object, or the path of a file. Must stay unchanged while in use.
    tier: kernel tier to use ("python", "numpy", ...); None takes the best one here.
    plan: bytes from `planner.make_plan`, or None: for a path, the file `<path>.plan` when
        there is one, else the greedy planner.
    arena_limit: bytes the arena may have.

    Attributes: inputs, outputs (TensorInfo), arena_bytes, tier, planned (True when a plan
    was used).

    ModelError when the model is damaged, uses what is not supported, or does not fit.
    """

    def __init__(
        self,
        model: "Any",
        tier: "str | None" = None,
        plan: "Any" = None,
        arena_limit: int = ARENA_LIMIT,
    ) -> None:
        if hasattr(model, "__fspath__"):
            model = model.__fspath__()
        if isinstance(model, str):
            from .loading import read_files

            model, plan = read_files(model, plan)
        self.tier = ""
        self.planned = False
        self.arena_bytes = 0
        self.clear()
        from .loading import load

        load(self, TensorInfo, model, tier, plan, arena_limit)

    def clear(self) -> None:
        """Let go of everything that takes memory."""
        self.fill([], [], [], [], [])

    def fill(
        self,
        steps: "list[Step]",
        inputs: "list[TensorInfo]",
        outputs: "list[TensorInfo]",
        input_views: "list[Any]",
        output_views: "list[Any]",
    ) -> None:
        """What a loaded model consists of, from loading.py."""
        self._steps, self.inputs, self.outputs = steps, inputs, outputs
        self._inputs, self._outputs = input_views, output_views

    def steps(self) -> "list[Step]":
        """(kernel name, kernel, arguments) in the order they run, for tools.

        RESHAPE is not among them: its input and output share their memory.
        """
        return self._steps

    def input(self, index: int = 0) -> "Any":
        """Writable view of an input's bytes as signed items. Files can `readinto` it."""
        return self._inputs[index]

    def set_input(self, data: "Any", index: int = 0) -> None:
        """Copy the bytes of `data` (any buffer) to an input. ModelError: wrong size."""
        source = raw(memoryview(data))
        target = raw(self._inputs[index])
        if len(source) != len(target):
            raise ModelError(
                "%d bytes given, %d needed" % (len(source), len(target)), self.inputs[index].where
            )
        target[:] = source

    def output(self, index: int = 0) -> "Any":
        """View of an output's bytes as signed items, valid until the next invocation."""
        return self._outputs[index]

    def invoke(self, observe: "Callable[[int, str], None] | None" = None) -> None:
        """Run the model. `observe(step, kernel name)` is called after each kernel."""
        for k in range(len(self._steps)):
            name, kernel, args = self._steps[k]
            try:
                kernel(*args)
            except MemoryError:
                raise ModelError("too little heap", "step %d (%s)" % (k, name))
            if observe is not None:
                observe(k, name)

    def run(self, data: "Any") -> bytes:
        """Set input 0, invoke, and return a copy of output 0."""
        self.set_input(data)
        self.invoke()
        return bytes(self._outputs[0])
