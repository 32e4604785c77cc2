"""Prepares the operators that work value by value or move values."""

from array import array

from .flatbuffer import FLOAT32, INT8, INT32, UINT8, Tensor
from .operands import Call
from .quantize import (
    float_quotient_rounded,
    input_radius,
    multiplier,
    scale_parts,
    scaled,
    shift_right,
    wide,
)
from .quantize import (
    logistic as fixed_logistic,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from .operands import Step

# Schema numbers of the option tables; a table of another type is refused.
_SOFTMAX, _CONCATENATION, _ADD, _MUL, _REDUCE = 9, 10, 11, 21, 27

_ONE_256TH = 0x3B800000  # float32 bits of 1 / 256
_MAX_CLASSES = 4095  # more exponentials of 1 would overflow the 12 integer bits of their sum


def _four(c: Call, shape: "tuple[int, ...]") -> "tuple[int, ...]":
    if len(shape) > 4:
        raise c.fail("%d dimensions, at most 4 are supported" % len(shape))
    return (1,) * (4 - len(shape)) + shape


def _broadcast(c: Call, a: Tensor, b: Tensor, out: Tensor) -> "tuple[int, ...]":
    """Dimensions of the output, then strides of a and of b."""
    if a.shape == b.shape == out.shape:
        return (1, 1, 1, out.count, 0, 0, 0, 1, 0, 0, 0, 1)
    dims = _four(c, out.shape)
    strides: tuple[int, ...] = ()
    full: tuple[int, ...] = (1, 1, 1, 1)
    for tensor in (a, b):
        shape = _four(c, tensor.shape)
        step, found = 1, []
        for k in (3, 2, 1, 0):
            if shape[k] != dims[k] and shape[k] != 1:
                raise c.fail("shapes %s, %s become %s" % (a.shape, b.shape, out.shape))
            found.append(0 if shape[k] == 1 else step)
            step *= shape[k]
        found.reverse()
        strides += tuple(found)
        full = tuple([max(full[k], shape[k]) for k in range(4)])
    if full != dims or len(out.shape) != max(len(a.shape), len(b.shape)):
        raise c.fail("shapes %s, %s become %s" % (a.shape, b.shape, out.shape))
    return dims + strides


def add(c: Call) -> "Step":
    c.operands(2, 2)
    a, b, out = c.input(0), c.input(1), c.output()
    low, high = c.activation(c.graph.reader.byte(c.options(_ADD), 0), out)
    shape = _broadcast(c, a, b, out)
    am, ae = c.scale(a)
    bm, be = c.scale(b)
    om, oe = c.scale(out)
    # Everything is brought to twice the larger input scale first.
    exp, top = max((ae, am), (be, bm))
    exp += 1
    m, s = multiplier(wide(top), exp - 24, om, oe + 20)
    ma, sa = multiplier(wide(am), ae - 24, top, exp)
    mb, sb = multiplier(wide(bm), be - 24, top, exp)
    if s > 0:
        raise c.fail("scales too far apart")
    p = array("i", shape + (c.zero(a), c.zero(b), c.zero(out), low, high, m, s, ma, sa, mb, sb))
    return c.kernel("add", c.data(out), c.data(a), c.data(b), p)


def mul(c: Call) -> "Step":
    c.operands(2, 2)
    a, b, out = c.input(0), c.input(1), c.output()
    low, high = c.activation(c.graph.reader.byte(c.options(_MUL), 0), out)
    shape = _broadcast(c, a, b, out)
    am, ae = c.scale(a)
    bm, be = c.scale(b)
    om, oe = c.scale(out)
    m, s = multiplier(am * bm, ae + be, om, oe)
    if s > 30:
        raise c.fail("scales too far apart")
    p = array("i", shape + (c.zero(a), c.zero(b), c.zero(out), low, high, m, s))
    return c.kernel("mul", c.data(out), c.data(a), c.data(b), p)


def _axis(c: Call, axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise c.fail("axis %d of %d" % (axis, rank))
    return axis % rank


def concatenation(c: Call) -> "Step":
    c.operands(1, 64)
    out = c.output()
    table = c.options(_CONCATENATION)
    r = c.graph.reader
    if r.byte(table, 1):
        raise c.fail("fused activation %d is not supported" % r.byte(table, 1))
    axis = _axis(c, r.integer(table, 0), len(out.shape))
    outer, inner, total = 1, 1, 0
    for d in out.shape[:axis]:
        outer *= d
    for d in out.shape[axis + 1 :]:
        inner *= d
    p, inputs = [outer], []
    for k in range(len(c.op.inputs)):
        x = c.input(k)
        c.same_scale(x, out)
        if (
            len(x.shape) != len(out.shape)
            or x.shape[:axis] != out.shape[:axis]
            or x.shape[axis + 1 :] != out.shape[axis + 1 :]
        ):
            raise c.fail("shape %s does not fit %s" % (x.shape, out.shape))
        total += x.shape[axis]
        p.append(x.shape[axis] * inner)
        inputs.append(c.data(x))
    if total != out.shape[axis]:
        raise c.fail("%d along axis %d becomes %d" % (total, axis, out.shape[axis]))
    return c.kernel("concatenation", c.data(out), tuple(inputs), array("i", p))


def pad(c: Call) -> "Step":
    c.operands(2, 2)
    x, out = c.input(0), c.output()
    counts = c.constants(c.input(1, (INT32,)))
    rank = len(x.shape)
    c.same_scale(x, out)
    shape = _four(c, x.shape)
    if len(counts) != 2 * rank or len(out.shape) != rank:
        raise c.fail("%d paddings for %d dimensions" % (len(counts), rank))
    before, after = (0,) * (4 - rank), (0,) * (4 - rank)
    for k in range(rank):
        b, a = counts[2 * k], counts[2 * k + 1]
        if b < 0 or a < 0 or x.shape[k] + b + a != out.shape[k]:
            raise c.fail("padding %d, %d of %s becomes %s" % (b, a, x.shape, out.shape))
        before += (b,)
        after += (a,)
    p = array("i", shape + before + after + (c.zero(out),))
    return c.kernel("pad", c.data(out), c.data(x), p)


def mean(c: Call) -> "Step":
    c.operands(2, 2)
    x, out = c.input(0), c.output()
    rank = len(x.shape)
    if not 1 <= rank <= 4:
        raise c.fail("%d dimensions, 1 to 4 are supported" % rank)
    axes = [_axis(c, a, rank) for a in c.constants(c.input(1, (INT32,)))]
    keep = c.graph.reader.byte(c.options(_REDUCE), 0)
    shape: list[int] = []
    runs = [1, 1, 1, 1, 1]  # kept and reduced dimensions in turn, neighbours joined
    at, count = 0, 1
    for k in range(rank):
        reduced = k in axes
        if reduced != (at % 2 == 1):
            at += 1
        runs[at] *= x.shape[k]
        if reduced:
            count *= x.shape[k]
            if keep:
                shape.append(1)
        else:
            shape.append(x.shape[k])
    if tuple(shape) != out.shape:
        raise c.fail("%s becomes %s where %s is needed" % (x.shape, out.shape, tuple(shape)))
    xm, xe = c.scale(x)
    om, oe = c.scale(out)
    m, s = multiplier(wide(xm), xe - 24, om, oe)
    # The division by the count goes into the multiplier, as far as it has room.
    more, n = -1, count
    while n:
        more += 1
        n >>= 1
    more = min(more, 32, 31 + s)
    m = (m << more) // count
    s -= more
    if s > 30:
        raise c.fail("scales too far apart")
    p = array("i", tuple(runs) + (c.zero(x), c.zero(out), m, s))
    return c.kernel("mean", c.data(out), c.data(x), p)


def reshape(c: Call) -> "Step | None":
    """Nothing to run: input and output share their memory."""
    c.operands(1, 2)
    kinds = (INT8, UINT8, FLOAT32)
    x, out = c.input(0, kinds), c.output(kinds)
    if x.kind != out.kind or x.count != out.count:
        raise c.fail("%s becomes %s" % (x.shape, out.shape))
    if len(c.op.inputs) > 1 and c.op.inputs[1] >= 0:
        c.constants(c.input(1, (INT32,)))
    return None


def softmax(c: Call) -> "Step":
    c.operands(1, 1)
    x, out = c.input(0), c.output()
    c.same_shape(x, out)
    if not x.shape or x.shape[-1] > _MAX_CLASSES:
        raise c.fail("shape %s, at most %d classes are supported" % (x.shape, _MAX_CLASSES))
    if c.bits(out) != _ONE_256TH or c.zero(out) != -128:
        raise c.fail("output scale must be 1/256 and its zero point -128")
    r = c.graph.reader
    at = r.field(c.options(_SOFTMAX), 0)
    bm, be = scale_parts(r.u32(at) if at else 0, "beta")
    xm, xe = c.scale(x)
    m, s = multiplier(bm * xm, be + xe + 26, 0x800000, -23)
    if s < 1:
        raise c.fail("input scale times beta is too small")
    if s > 31:
        m, s = 0x7FFFFFFF, 31
    depth = x.shape[-1]
    p = array("i", (x.count // depth, depth, m, s, input_radius(5, s)))
    return c.kernel("softmax", c.data(out), c.data(x), p)


def _lookup(c: Call, x: Tensor, out: Tensor, value: "Callable[[int], int]") -> "Step":
    """A call that replaces every byte by `value` of it, clamped to the output's type."""
    c.same_shape(x, out)
    low = 0 if out.kind == UINT8 else -128
    table = array("b", bytes(256))
    for k in range(256):
        v = value(k - 256 if k > 127 and x.kind == INT8 else k)
        v = low if v < low else low + 255 if v > low + 255 else v
        table[k] = v - 256 if v > 127 else v
    return c.kernel("lookup", c.data(out), c.data(x), table)


def logistic(c: Call) -> "Step":
    c.operands(1, 1)
    x, out = c.input(0), c.output()
    if c.bits(out) != _ONE_256TH or c.zero(out) != -128:
        raise c.fail("output scale must be 1/256 and its zero point -128")
    zero = c.zero(x)
    m, exp = c.scale(x)
    m <<= 7
    s = exp + 51  # to 4 integer and 27 fraction bits
    if s < 0:
        raise c.fail("input scale is too small")
    radius = input_radius(4, s)

    def value(v: int) -> int:
        v -= zero
        if v <= -radius:
            return -128
        if v >= radius:
            return 127
        return shift_right(fixed_logistic(scaled(v, m, s)), 23) - 128

    return _lookup(c, x, out, value)


def _rescale(c: Call, x: Tensor, out: Tensor) -> "Callable[[int], int]":
    zx, zo = c.zero(x), c.zero(out)
    xm, xe = c.scale(x)
    om, oe = c.scale(out)
    m, s = multiplier(wide(xm), xe - 24, om, oe)
    if s > 30:
        raise c.fail("scales too far apart")
    return lambda v: scaled(v - zx, m, s) + zo


def relu(c: Call) -> "Step":
    c.operands(1, 1)
    x, out = c.input(0), c.output()
    rescaled, low = _rescale(c, x, out), c.zero(out)
    return _lookup(c, x, out, lambda v: max(low, rescaled(v)))


def relu6(c: Call) -> "Step":
    c.operands(1, 1)
    x, out = c.input(0), c.output()
    c.same_scale(x, out)
    low = c.zero(x)
    high = min(127, low + float_quotient_rounded(0xC00000, -21, *c.scale(x)))
    return _lookup(c, x, out, lambda v: high if v > high else max(low, v))


def quantize(c: Call) -> "Step":
    c.operands(1, 1)
    x = c.input(0, (FLOAT32, INT8, UINT8))
    if x.kind != FLOAT32:
        out = c.output((INT8, UINT8) if x.kind == INT8 else (INT8,))
        return _lookup(c, x, out, _rescale(c, x, out))
    out = c.output()
    c.same_shape(x, out)
    p = array("i", (c.zero(out),) + c.scale(out) + (-128, 127))
    return c.kernel("quantize", c.data(out), c.data(x), p)


def dequantize(c: Call) -> "Step":
    c.operands(1, 1)
    x, out = c.input(0), c.output((FLOAT32,))
    c.same_shape(x, out)
    p = array("i", (c.zero(x),) + c.scale(x) + (-128, 127))
    return c.kernel("dequantize", c.data(out), c.data(x), p)
