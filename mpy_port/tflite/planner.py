"""Places the tensors that are computed in one arena, so that those alive together do not overlap.

Theory of operation. A tensor lives from the operator that writes it to the last one that
reads it; inputs of the model are written before the first operator, outputs are read
after the last. RESHAPE copies nothing: its output shares the block of its input. What is
left is packing rectangles of fixed time and size. `greedy` takes the largest first and
puts each at the lowest offset where it fits: fast enough for a device, not optimal.
`search` tries other orders until it meets `lower_bound`, the most bytes that are alive at
once; it takes seconds, so it runs offline and its result is stored as a plan beside the
model.

A plan is never trusted: `apply` checks that it belongs to tensors of these sizes and
lifetimes, so a plan of another model is either refused or happens to be right.

Plan format: little-endian int32: 1 (version), 0 (subgraph), number of tensors, then for
each tensor its offset in the arena or -1. It is the layout of the metadata buffer
"OfflineMemoryAllocation" that TensorFlow Lite Micro reads.
"""

from .errors import ModelError
from .flatbuffer import Graph
from .quantize import float_bits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RESHAPE = 22
ALIGNMENT = 4  # of offsets and sizes, so that kernels may load words

# A block: (bytes, first operator, last operator); -1 is before the first operator.


class Layout:
    """The blocks of a graph.

    owners: index of the tensor that each block is for.  blocks: (bytes, first, last).
    shares: tensor index -> index of the tensor whose memory it uses.
    """

    def __init__(
        self, owners: "list[int]", blocks: "list[tuple[int, int, int]]", shares: "dict[int, int]"
    ) -> None:
        self.owners = owners
        self.blocks = blocks
        self.shares = shares


def layout(graph: Graph) -> Layout:
    """Lifetimes of everything that is computed.

    ModelError when a tensor is read before it is written, written twice, or constant
    and written.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    shares: dict[int, int] = {}
    owners: list[int] = []

    def write(index: int, now: int) -> None:
        if index in first or index in shares or graph.tensor(index).data is not None:
            raise ModelError("written twice or constant", graph.where(index))
        first[index] = last[index] = now
        owners.append(index)

    def read(index: int, now: int) -> None:
        index = shares.get(index, index)
        if index in first:
            last[index] = now
        elif graph.tensor(index).data is None:
            raise ModelError("read before it is written", graph.where(index))

    for index in graph.inputs:
        write(index, -1)
    for op in graph.operators:
        for index in op.inputs:
            if index >= 0:
                read(index, op.index)
        if op.code == RESHAPE and op.inputs and op.inputs[0] >= 0 and len(op.outputs) == 1:
            source, target = op.inputs[0], op.outputs[0]
            if target < 0 or target in first or target in shares or target == source:
                raise ModelError("written twice or missing", "operator %d" % op.index)
            if graph.tensor(target).size != graph.tensor(source).size:
                raise ModelError(
                    "%d bytes reshaped to %d"
                    % (graph.tensor(source).size, graph.tensor(target).size),
                    graph.where(target),
                )
            if graph.tensor(target).data is not None:
                raise ModelError("written twice or constant", graph.where(target))
            shares[target] = shares.get(source, source)
            continue
        for index in op.outputs:
            if index < 0:
                raise ModelError("an output is missing", "operator %d" % op.index)
            write(index, op.index)
    for index in graph.outputs:
        read(index, len(graph.operators))
    blocks = []
    for index in owners:
        size = (graph.tensor(index).size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        blocks.append((size, first[index], last[index]))
    return Layout(owners, blocks, shares)


def lower_bound(blocks: "list[tuple[int, int, int]]") -> int:
    """The most bytes alive at once: no placement can need less."""
    most = 0
    for _, now, _ in blocks:
        alive = 0
        for size, first, last in blocks:
            if first <= now <= last:
                alive += size
        most = max(most, alive)
    return most


def place(blocks: "list[tuple[int, int, int]]", order: "list[int]") -> "tuple[list[int], int]":
    """Offsets when each block in turn takes the lowest place free; bytes needed in all."""
    offsets = [0] * len(blocks)
    placed: list[tuple[int, int, int, int]] = []  # (offset, end, first, last), by offset
    total = 0
    for k in order:
        size, first, last = blocks[k]
        at = 0
        for offset, end, begun, done in placed:
            if begun <= last and first <= done:
                if at + size <= offset:
                    break
                if end > at:
                    at = end
        offsets[k] = at
        total = max(total, at + size)
        i = 0
        while i < len(placed) and placed[i][0] <= at:
            i += 1
        placed.insert(i, (at, at + size, first, last))
    return offsets, total


def by_size(blocks: "list[tuple[int, int, int]]") -> "list[int]":
    """Numbers of the blocks, largest first, equal ones in their order.

    The number is part of the key because MicroPython's sort is not stable: a device and
    the tools on a host must agree on the arena.
    """
    return sorted(range(len(blocks)), key=lambda k: (-blocks[k][0], k))


def greedy(blocks: "list[tuple[int, int, int]]") -> "tuple[list[int], int]":
    """Largest first. Returns the offsets and the bytes needed."""
    order = by_size(blocks)
    return place(blocks, order)


def search(
    blocks: "list[tuple[int, int, int]]", tries: int = 20000, seed: int = 1
) -> "tuple[list[int], int]":
    """The best of `tries` orders, each two swaps away from the best before it.

    Ends at once when the lower bound is met. The same seed gives the same result
    everywhere.
    """
    order = by_size(blocks)
    best, least = place(blocks, order)
    bound = lower_bound(blocks)
    state = seed
    while tries > 0 and least > bound:
        tries -= 1
        trial = order[:]
        for _ in range(2):
            state = (state * 1103515245 + 12345) & 0x3FFFFFFF
            i = (state >> 12) % len(trial)
            state = (state * 1103515245 + 12345) & 0x3FFFFFFF
            j = (state >> 12) % len(trial)
            trial[i], trial[j] = trial[j], trial[i]
        offsets, total = place(blocks, trial)
        if total <= least:
            order, best, least = trial, offsets, total
    return best, least


def encode(graph: Graph, plan: Layout, offsets: "list[int]") -> bytes:
    """The plan file for these offsets (one per block)."""
    values = [1, 0, graph.tensor_count] + [-1] * graph.tensor_count
    for k in range(len(offsets)):
        values[3 + plan.owners[k]] = offsets[k]
    return b"".join([(v & 0xFFFFFFFF).to_bytes(4, "little") for v in values])


def apply(graph: Graph, plan: Layout, data: "Any") -> "tuple[list[int], int]":
    """Offsets from a plan file, checked against the graph; bytes needed. ModelError."""
    view = memoryview(data)
    count = graph.tensor_count
    if len(view) != 4 * (3 + count):
        raise ModelError("%d bytes for %d tensors" % (len(view), count), "plan")
    if (float_bits(view, 0), float_bits(view, 4), float_bits(view, 8)) != (1, 0, count):
        raise ModelError("not a plan for this model", "plan")
    offsets: list[int] = []
    total = 0
    for k in range(len(plan.owners)):
        offset = float_bits(view, 12 + 4 * plan.owners[k])
        size, first, last = plan.blocks[k]
        if offset >= 0x80000000:
            raise ModelError("no place for " + graph.where(plan.owners[k]), "plan")
        for i in range(k):
            other, begun, done = plan.blocks[i]
            if (
                begun <= last
                and first <= done
                and offset < offsets[i] + other
                and offsets[i] < offset + size
            ):
                raise ModelError(
                    "%s and %s overlap"
                    % (graph.where(plan.owners[i]), graph.where(plan.owners[k])),
                    "plan",
                )
        offsets.append(offset)
        total = max(total, offset + size)
    return offsets, total


def make_plan(model: "Any", tries: int = 20000) -> "tuple[bytes, int, int, int]":
    """Plan a model offline: (plan file, bytes needed, bytes greedy needs, lower bound)."""
    graph = Graph(model)
    plan = layout(graph)
    offsets, total = search(plan.blocks, tries)
    return (
        encode(graph, plan, offsets),
        total,
        greedy(plan.blocks)[1],
        lower_bound(plan.blocks),
    )
