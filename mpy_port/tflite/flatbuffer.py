"""Reads a `.tflite` file where it lies: bounds-checked FlatBuffers, then the graph.

Theory of operation. A FlatBuffer is a tree of tables and vectors joined by offsets
that the file chooses freely, so nothing in it may be believed. `Reader` checks every
position against the length of the buffer before it reads there. Cycles are harmless:
the graph is walked to a fixed depth (model, subgraph, tensor, quantisation), never by
following offsets until they end. Every count is compared with the bytes that would have
to hold it, and the counts that decide how much work or memory follows have limits of
their own below. Sizes are Python integers and cannot overflow.

Numbers are read byte by byte, because a model in flash may lie at any address and
MicroPython's struct returns a tuple on the heap for each of them.

Constant tensors stay where they are: `Tensor.data` is a view into the model.
"""

from collections import namedtuple

from .errors import ModelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLOAT32, INT32, UINT8, INT8 = 0, 2, 3, 9
WIDTHS = {FLOAT32: 4, INT32: 4, UINT8: 1, INT8: 1}

CUSTOM = 32  # operator code of operators that are named by a text
SCHEMA_VERSION = 3

# A model above these needs a machine that has no use for this library.
MAX_BYTES = 1 << 29
MAX_TENSORS = 4096
MAX_OPERATORS = 4096
MAX_OPERANDS = 64
MAX_RANK = 6


class Reader:
    """Checked access to one FlatBuffer. Positions are bytes from its beginning.

    where: what is being read, named in errors.
    """

    def __init__(self, data: "Any") -> None:
        self.data = memoryview(data)
        self.size = len(self.data)
        self.where = "model"

    def fail(self, what: str) -> ModelError:
        return ModelError(what, self.where, "The file is damaged or not a .tflite model")

    def check(self, at: int, length: int) -> None:
        if at < 0 or length < 0 or at + length > self.size:
            raise self.fail("offset outside the file of %d bytes" % self.size)

    def u8(self, at: int) -> int:
        self.check(at, 1)
        return self.data[at]

    def u16(self, at: int) -> int:
        self.check(at, 2)
        data = self.data
        return data[at] | data[at + 1] << 8

    def u32(self, at: int) -> int:
        self.check(at, 4)
        data = self.data
        return data[at] | data[at + 1] << 8 | data[at + 2] << 16 | data[at + 3] << 24

    def i32(self, at: int) -> int:
        value = self.u32(at)
        return value - 0x100000000 if value & 0x80000000 else value

    def i64(self, at: int) -> int:
        return self.u32(at) + (self.i32(at + 4) << 32)

    def follow(self, at: int) -> int:
        """Where the offset stored at `at` points."""
        target = at + self.u32(at)
        self.check(target, 4)
        return target

    def field(self, table: int, number: int) -> int:
        """Position of a table's field, 0 when the table leaves it out."""
        vtable = table - self.i32(table)
        entry = 4 + 2 * number
        if entry + 2 > self.u16(vtable):
            return 0
        offset = self.u16(vtable + entry)
        return table + offset if offset else 0

    def table(self, table: int, number: int) -> int:
        """Position of the table that a field refers to, 0 when it is left out."""
        at = self.field(table, number)
        return self.follow(at) if at else 0

    def vector(self, table: int, number: int, width: int) -> "tuple[int, int]":
        """Position of the first element and the number of elements of a vector field."""
        at = self.table(table, number)
        if not at:
            return 0, 0
        count = self.u32(at)
        self.check(at + 4, count * width)
        return at + 4, count

    def byte(self, table: int, number: int, default: int = 0) -> int:
        at = self.field(table, number)
        return self.u8(at) if at else default

    def integer(self, table: int, number: int, default: int = 0) -> int:
        at = self.field(table, number)
        return self.i32(at) if at else default

    def integers(self, at: int, count: int) -> "tuple[int, ...]":
        """int32 elements of a vector that has been checked."""
        return tuple([self.i32(at + 4 * k) for k in range(count)])

    def tensor(self, table: int, buffers: int, count: int) -> "tuple[Any, ...]":
        """What a tensor's table, that of its quantisation, and its buffer hold.

        buffers: position of the vector of buffers, which has `count` of them.

        Shape, type, whether it is variable, whether it is sparse, external buffer, (position,
        count) of its scales and of its zero points, the quantised dimension, bits of the first
        scale, first zero point, position and length of its data.
        """
        at, rank = self.vector(table, 0, 4)
        if rank > MAX_RANK:
            raise self.fail("%d dimensions, at most %d are supported" % (rank, MAX_RANK))
        kind, number = self.byte(table, 1), self.integer(table, 2)
        odd = (self.byte(table, 5), self.field(table, 6), self.integer(table, 10))
        scales, zeros, axis, data = (0, 0), (0, 0), 0, (0, 0)
        quantisation = self.table(table, 4)
        if quantisation:
            scales, zeros = self.vector(quantisation, 2, 4), self.vector(quantisation, 3, 8)
            axis = self.integer(quantisation, 6)
        if number:
            if not 0 < number < count:
                raise self.fail("buffer %d of %d" % (number, count))
            buffer = self.follow(buffers + 4 * number)
            offset = self.field(buffer, 1)
            if offset and self.i64(offset) > 1:
                raise self.fail("data outside the FlatBuffer is not supported")
            data = self.vector(buffer, 0, 1)
        first = self.u32(scales[0]) if scales[1] else 0
        zero = self.i64(zeros[0]) if zeros[1] else 0
        shape = self.integers(at, rank)
        return (shape, kind) + odd + (scales, zeros, axis, first, zero) + data

    def text(self, table: int, number: int) -> str:
        """A text field cut to 48 characters that are safe to print."""
        at, count = self.vector(table, number, 1)
        found = bytearray(self.data[at : at + min(count, 48)])
        if found and (min(found) < 32 or max(found) > 126):
            for k in range(len(found)):
                if not 32 <= found[k] < 127:
                    found[k] = 63  # a question mark
        return found.decode()


# One tensor of the graph.
#   shape: tuple of positive dimensions.  count: elements.  size: bytes.
#   data: view of the model for constants, None for what is computed.
#   scales, zeros: (position, count) of the quantisation vectors.  axis: quantised dimension.
#   scale_bits, zero_point: the first of each; 0 when there is none.
# Named tuples, because an object grows its table of attributes one by one.
Tensor = namedtuple(
    "Tensor",
    (
        "index",
        "shape",
        "kind",
        "count",
        "size",
        "data",
        "scales",
        "zeros",
        "axis",
        "scale_bits",
        "zero_point",
    ),
)

# One operator: its code, tensor indexes (-1: optional input left out), options table.
Operator = namedtuple("Operator", ("index", "code", "inputs", "outputs", "options", "options_type"))


class Graph:
    """The first subgraph of a model. Every index in it is in range.

    inputs, outputs: tensor indexes.  operators: in the order they run.
    reader: class to read with; a kernel tier may have a faster one.
    Tensors are read when they are asked for: one that no operator uses does no harm.
    """

    def __init__(self, data: "Any", reader: "type[Reader]" = Reader) -> None:
        r = reader(data)
        self.reader = r
        if r.size < 8 or r.size > MAX_BYTES:
            raise r.fail("%d bytes cannot be a model" % r.size)
        if bytes(r.data[4:8]) != b"TFL3":
            raise r.fail("no TFL3 identifier")
        model = r.follow(0)
        version = r.integer(model, 0)
        if version != SCHEMA_VERSION:
            raise r.fail("schema version %d, only 3 is supported" % version)
        self._codes, self._code_count = r.vector(model, 1, 4)
        subgraphs, count = r.vector(model, 2, 4)
        if not count:
            raise r.fail("no subgraph")
        self._buffers, self._buffer_count = r.vector(model, 4, 4)
        r.where = "subgraph"
        graph = r.follow(subgraphs)
        self._tensors, self.tensor_count = r.vector(graph, 0, 4)
        if not 0 < self.tensor_count <= MAX_TENSORS:
            raise r.fail("%d tensors, 1 to %d are supported" % (self.tensor_count, MAX_TENSORS))
        self.inputs = self._indexes(graph, 1)
        self.outputs = self._indexes(graph, 2)
        if not self.inputs or not self.outputs:
            raise r.fail("no input or no output")
        if -1 in self.inputs or -1 in self.outputs:
            raise r.fail("an input or output without tensor")
        self.operators = self._read_operators(graph)
        self.tensors: dict[int, Tensor] = {}

    def _indexes(self, table: int, number: int) -> "tuple[int, ...]":
        r = self.reader
        at, count = r.vector(table, number, 4)
        if count > MAX_OPERANDS:
            raise r.fail("%d operands, at most %d are supported" % (count, MAX_OPERANDS))
        found = r.integers(at, count)
        for index in found:
            if not -1 <= index < self.tensor_count:
                raise r.fail("tensor %d of %d" % (index, self.tensor_count))
        return found

    def _read_operators(self, graph: int) -> "list[Operator]":
        r = self.reader
        at, count = r.vector(graph, 3, 4)
        if not 0 < count <= MAX_OPERATORS:
            raise r.fail("%d operators, 1 to %d are supported" % (count, MAX_OPERATORS))
        found = []
        for k in range(count):
            try:
                found.append(self._read_operator(k, r.follow(at + 4 * k)))
            except ModelError as error:
                raise ModelError(error.what, "operator %d" % k, error.fix)
        return found

    def _read_operator(self, index: int, table: int) -> Operator:
        r = self.reader
        code = r.integer(table, 0)
        if not 0 <= code < self._code_count:
            raise r.fail("operator code %d of %d" % (code, self._code_count))
        entry = r.follow(self._codes + 4 * code)
        # Codes above 127 moved to a field of their own; files may fill in either.
        code = max(r.byte(entry, 0), r.integer(entry, 3))
        inputs, outputs = self._indexes(table, 1), self._indexes(table, 2)
        return Operator(index, code, inputs, outputs, r.table(table, 4), r.byte(table, 3))

    def operator_name(self, op: Operator) -> str:
        """Schema name of the operator, or the name of a custom one."""
        from .names import operator_name

        if op.code != CUSTOM:
            return operator_name(op.code)
        r = self.reader
        at, _ = r.vector(r.follow(self._subgraph()), 3, 4)
        code = r.integer(r.follow(at + 4 * op.index), 0)
        return "custom operator " + r.text(r.follow(self._codes + 4 * code), 1)

    def _subgraph(self) -> int:
        return self.reader.vector(self.reader.follow(0), 2, 4)[0]

    def tensor(self, index: int) -> Tensor:
        """The tensor, read on first use. ModelError when it cannot be held."""
        found = self.tensors.get(index)
        if found is None:
            try:
                found = self._read_tensor(index)
            except ModelError as error:
                raise ModelError(error.what, self.where(index), error.fix)
            self.tensors[index] = found
        return found

    def name(self, index: int) -> str:
        """Name of a tensor, "" when it has none or a damaged one."""
        r = self.reader
        try:
            return r.text(r.follow(self._tensors + 4 * index), 3)
        except ModelError:
            return ""  # a damaged name must not hide what is being reported

    def where(self, index: int) -> str:
        """How messages name a tensor."""
        name = self.name(index)
        return "tensor %d (%s)" % (index, name) if name else "tensor %d" % index

    def _read_tensor(self, index: int) -> Tensor:
        """The caller puts the tensor's name into errors."""
        r = self.reader
        shape, kind, variable, sparse, external, scales, zeros, axis, bits, zero, at, length = (
            r.tensor(r.follow(self._tensors + 4 * index), self._buffers, self._buffer_count)
        )
        count = 1
        for d in shape:
            if d < 1:
                raise ModelError(
                    "dynamic or empty shape (one dimension is %d)" % d,
                    "",
                    "Convert the model with a fixed batch size and input shape",
                )
            count *= d
        if kind not in WIDTHS:
            from .names import type_name

            raise ModelError(
                type_name(kind) + " is not supported",
                "",
                "Convert the model with full int8 quantisation",
            )
        if variable:
            raise ModelError("variable tensors are not supported", "")
        if sparse:
            raise ModelError("sparse tensors are not supported", "")
        if external:
            raise ModelError("external buffers are not supported", "")
        size = count * WIDTHS[kind]
        data = self._data(at, length, size) if length else None
        return Tensor(index, shape, kind, count, size, data, scales, zeros, axis, bits, zero)

    def _data(self, at: int, length: int, size: int) -> "Any":
        if length != size:
            raise self.reader.fail("%d bytes of data for %d" % (length, size))
        return self.reader.data[at : at + length]
