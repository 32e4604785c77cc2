"""Loads an int8 `.tflite` model and runs it.

Theory of operation. Loading happens once and in an order that suits a small heap: read
the graph, refuse unsupported operators by name, place the tensors, allocate the arena
while memory is still in one piece, then prepare each operator into a kernel and its
arguments. `invoke` only calls them in turn. Weights stay in the model's own memory
(flash, when the model is a frozen module or lies in ROMFS); biases and multipliers are
copied, because nothing in a model is sure to be aligned.

The input's memory is reused while the model runs: write it before every invocation.
"""

import struct

from . import planner
from .errors import ModelError
from .flatbuffer import FLOAT32, UINT8, Graph, Reader
from .memory import allocate, collect, collect_as_before, collect_often, raw, signed
from .op_resolver import missing, prepare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .kernels import Tiers
    from .operands import Step

ARENA_LIMIT = 64 << 20  # bytes; a model that wants more is no model for this library


class TensorInfo:
    """What a caller needs to know of an input or output.

    shape: tuple.  size: bytes.  type: "int8", "uint8" or "float32".
    scale (a float) and zero_point: real value = scale * (stored - zero_point).
    scale_bits: the float32 bits of the scale, the same on every machine.
    """

    def __init__(self, graph: Graph, index: int) -> None:
        tensor = graph.tensor(index)
        self.where = graph.where(index)
        self.shape = tensor.shape
        self.size = tensor.size
        self.type = {FLOAT32: "float32", UINT8: "uint8"}.get(tensor.kind, "int8")
        self.scale_bits, self.scale, self.zero_point = 0, 0.0, 0
        if tensor.scales[1] == 1:
            self.scale_bits, self.zero_point = tensor.scale_bits, tensor.zero_point
            self.scale = struct.unpack("<f", self.scale_bits.to_bytes(4, "little"))[0]


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
            model, plan = read_files(model, plan)
        self._arena: Any = None
        self._steps: list[Step] = []
        from .kernels import Tiers  # only now: the package is found when it is complete

        tiers = Tiers(tier)
        reader = getattr(tiers.first, "Reader", None)
        try:
            if reader is not None:
                # It leaves little garbage: collecting often would take longer than loading.
                collect()
                try:
                    self._open(model, tiers, reader, plan, arena_limit)
                    return
                except MemoryError:
                    self._arena, self._steps = None, []  # again, more slowly
            before = collect_often()
            try:
                self._open(model, tiers, reader or Reader, plan, arena_limit)
            finally:
                collect_as_before(before)
        except MemoryError:
            need = " (the arena has %d bytes)" % self.arena_bytes if self.arena_bytes else ""
            raise ModelError("too little heap" + need, "model", "Use a smaller model or a plan")

    def _open(
        self,
        model: "Any",
        tiers: "Tiers",
        reader: "type[Reader]",
        plan: "Any",
        arena_limit: int,
    ) -> None:
        self.tier = tiers.name
        self.planned = plan is not None
        self.arena_bytes = 0
        graph = Graph(model, reader)
        lacking = missing(graph)
        if lacking:
            raise ModelError(
                "unsupported operators: " + ", ".join(lacking), "model", "Change these layers"
            )
        self._load(graph, tiers, plan, arena_limit)

    def _load(self, graph: Graph, tiers: "Tiers", plan: "Any", limit: int) -> None:
        layout = planner.layout(graph)
        if plan is None:
            offsets, self.arena_bytes = planner.greedy(layout.blocks)
        else:
            offsets, self.arena_bytes = planner.apply(graph, layout, plan)
        if self.arena_bytes > limit:
            raise ModelError(
                "the arena needs %d bytes, the limit is %d" % (self.arena_bytes, limit), "model"
            )
        self._arena = allocate(self.arena_bytes)
        places = {}
        for k in range(len(layout.owners)):
            places[layout.owners[k]] = offsets[k]

        def view(index: int) -> "Any":
            owner = layout.shares.get(index, index)
            tensor = graph.tensor(owner)
            if tensor.data is not None:
                return signed(tensor.data)
            return self._arena[places[owner] : places[owner] + tensor.size]

        self._steps = []
        for op in graph.operators:
            step = prepare(graph, op, tiers, view)
            if step is not None:
                self._steps.append(step)
        self.inputs = [TensorInfo(graph, k) for k in graph.inputs]
        self.outputs = [TensorInfo(graph, k) for k in graph.outputs]
        self._inputs = [view(k) for k in graph.inputs]
        self._outputs = [view(k) for k in graph.outputs]

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


def read_files(path: str, plan: "Any") -> "tuple[Any, Any]":
    """The model at a path, in place when the file system allows it, and its plan."""
    try:
        with open(path, "rb") as file:
            try:
                model: Any = memoryview(file)  # type: ignore[arg-type]  # a file in ROMFS
            except TypeError:
                # read() would grow its buffer step by step and leave holes in the heap.
                model = bytearray(file.seek(0, 2))
                file.seek(0)
                file.readinto(model)
    except OSError as error:
        raise ModelError("cannot be read: %s" % error, path)
    except MemoryError:
        raise ModelError("does not fit the heap", path, "Put it into ROMFS or a frozen module")
    if plan is None:
        try:
            with open(path + ".plan", "rb") as file:
                plan = file.read()
        except OSError:
            pass
    return model, plan
