"""Loads an int8 `.tflite` model into an Interpreter; not needed any more when it runs.

Theory of operation. An order that suits a small heap: read the graph, refuse unsupported
operators by name, place the tensors, allocate the arena while memory is still in one piece,
then prepare each operator into a kernel and its arguments. Biases and multipliers are
copied, because nothing in a model is sure to be aligned. What remains holds no reference
to this module, so a board can let go of it with all that it needs (mpy_port/unload.py).
"""

import struct

from . import planner
from .errors import ModelError
from .flatbuffer import FLOAT32, UINT8, Graph, Reader
from .memory import allocate, collect, collect_as_before, collect_often, signed
from .op_resolver import missing, prepare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .interpreter import Interpreter, TensorInfo
    from .kernels import Tiers


def load(
    net: "Interpreter",
    info: "type[TensorInfo]",
    model: "Any",
    tier: "str | None",
    plan: "Any",
    limit: int,
) -> None:
    """Fill `net`. ModelError."""
    try:
        from .kernels import Tiers  # only now: its package needs this module to be complete

        tiers = Tiers(tier)
        reader = getattr(tiers.first, "Reader", None)
        if reader is not None:
            # It leaves little garbage: collecting often would take longer than loading.
            collect()
            try:
                _open(net, info, model, tiers, reader, plan, limit)
                return
            except MemoryError:
                net.clear()  # again, more slowly
        before = collect_often()
        try:
            _open(net, info, model, tiers, reader or Reader, plan, limit)
        finally:
            collect_as_before(before)
    except MemoryError:
        need = " (the arena has %d bytes)" % net.arena_bytes if net.arena_bytes else ""
        raise ModelError("too little heap" + need, "model", "Use a smaller model or a plan")


def _open(
    net: "Interpreter",
    info: "type[TensorInfo]",
    model: "Any",
    tiers: "Tiers",
    reader: "type[Reader]",
    plan: "Any",
    limit: int,
) -> None:
    net.tier = tiers.name
    net.planned = plan is not None
    net.arena_bytes = 0
    graph = Graph(model, reader)
    lacking = missing(graph)
    if lacking:
        raise ModelError(
            "unsupported operators: " + ", ".join(lacking), "model", "Change these layers"
        )
    layout = planner.layout(graph)
    if plan is None:
        offsets, net.arena_bytes = planner.greedy(layout.blocks)
    else:
        offsets, net.arena_bytes = planner.apply(graph, layout, plan)
    if net.arena_bytes > limit:
        raise ModelError(
            "the arena needs %d bytes, the limit is %d" % (net.arena_bytes, limit), "model"
        )
    arena = allocate(net.arena_bytes)
    places = {}
    for k in range(len(layout.owners)):
        places[layout.owners[k]] = offsets[k]

    def view(index: int) -> "Any":
        owner = layout.shares.get(index, index)
        tensor = graph.tensor(owner)
        if tensor.data is not None:
            return signed(tensor.data)
        return arena[places[owner] : places[owner] + tensor.size]

    steps = []
    for op in graph.operators:
        step = prepare(graph, op, tiers, view)
        if step is not None:
            steps.append(step)
    net.fill(
        steps,
        [_info(info, graph, k) for k in graph.inputs],
        [_info(info, graph, k) for k in graph.outputs],
        [view(k) for k in graph.inputs],
        [view(k) for k in graph.outputs],
    )


def _info(make: "type[TensorInfo]", graph: Graph, index: int) -> "TensorInfo":
    tensor = graph.tensor(index)
    kind = {FLOAT32: "float32", UINT8: "uint8"}.get(tensor.kind, "int8")
    bits, scale, zero_point = 0, 0.0, 0
    if tensor.scales[1] == 1:
        bits, zero_point = tensor.scale_bits, tensor.zero_point
        scale = struct.unpack("<f", bits.to_bytes(4, "little"))[0]
    return make(graph.where(index), tensor.shape, tensor.size, kind, bits, scale, zero_point)


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
