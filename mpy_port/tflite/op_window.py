"""Prepares the operators that slide a window or multiply a matrix."""

from array import array

from .errors import ModelError
from .flatbuffer import INT32, Tensor
from .operands import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .operands import Step

# Schema numbers of the option tables; a table of another type is refused.
_CONV, _DEPTHWISE, _POOL, _FULLY = 1, 2, 5, 8

_MAX_DIMENSION = 1 << 24  # keeps every product that a kernel forms far from trouble


def _window(
    c: Call, padding: int, size: int, kernel: int, stride: int, dilation: int, out: int
) -> int:
    """Padding before the first row or column; checks the output size."""
    if not (0 < kernel <= _MAX_DIMENSION and 0 < stride <= _MAX_DIMENSION):
        raise c.fail("filter %d with stride %d" % (kernel, stride))
    if not 0 < dilation <= _MAX_DIMENSION or size > _MAX_DIMENSION:
        raise c.fail("dilation %d of size %d" % (dilation, size))
    reach = (kernel - 1) * dilation + 1
    if padding == 0:  # SAME
        wanted = (size + stride - 1) // stride
    elif padding == 1:  # VALID
        wanted = (size - reach + stride) // stride
    else:
        raise c.fail("padding %d" % padding)
    if wanted != out or out < 1:
        raise c.fail("output size %d where %d is needed" % (out, wanted))
    total = (out - 1) * stride + reach - size
    return total // 2 if total > 0 else 0


def _weights(c: Call, w: Tensor, channels: int, axis: int) -> "tuple[Any, int]":
    """The weights' view, and how many scales there are (1 or `channels`)."""
    if w.data is None:
        raise c.fail("%s is not constant" % c.graph.where(w.index))
    count = w.scales[1]
    if count != 1 and (count != channels or w.axis != axis):
        raise ModelError(
            "%d scales on dimension %d for %d channels" % (count, w.axis, channels),
            c.graph.where(w.index),
        )
    return w.data, count


def _bias(c: Call, channels: int) -> "array[int]":
    """Bias in RAM: its place in the model may be unaligned."""
    if len(c.op.inputs) < 3 or c.op.inputs[2] < 0:
        return array("i", bytes(4 * channels))
    bias = c.input(2, (INT32,))
    if bias.data is None or bias.count != channels:
        raise c.fail("%s is no bias for %d channels" % (c.graph.where(bias.index), channels))
    return array("i", bytes(bias.data))


def _multipliers(c: Call, x: Tensor, w: Tensor, out: Tensor) -> "tuple[array[int], array[int]]":
    at, count = w.scales
    p = array("i", (c.bits(x), c.bits(out)))
    mul = array("i", bytes(4 * count))
    shift = array("b", bytes(count))
    scales = c.graph.reader.data[at : at + 4 * count]
    bad = c.tiers.find("multipliers", p)(mul, shift, scales, p)
    if bad >= 0:
        raise ModelError("scale of channel %d is not usable" % bad, c.graph.where(w.index))
    return mul, shift


def _zero_weights(c: Call, w: Tensor) -> None:
    """Weights are symmetric; the reference kernels do not look at their zero points."""
    r = c.graph.reader
    at, count = w.zeros
    if r.data[at : at + 8 * count] != bytes(8 * count):
        raise ModelError("weights with a zero point", c.graph.where(w.index))


def _convolution(c: Call, depthwise: bool) -> "Step":
    c.operands(2, 3)
    x, w, out = c.input(0), c.input(1), c.output()
    if len(x.shape) != 4 or len(w.shape) != 4 or len(out.shape) != 4:
        raise c.fail("input, weights and output need 4 dimensions")
    n, ih, iw, ic = x.shape
    _, oh, ow, oc = out.shape
    if depthwise:
        table, act, first = c.options(_DEPTHWISE), 4, 5
        one, kh, kw, channels = w.shape
        fc = c.graph.reader.integer(table, 3)
        if one != 1 or channels != oc or fc < 1 or fc * ic != oc:
            raise c.fail("weights %s for %d channels with multiplier %d" % (w.shape, ic, fc))
    else:
        table, act, first = c.options(_CONV), 3, 4
        channels, kh, kw, fc = w.shape
        if channels != oc or ic % fc or oc % (ic // fc):
            raise c.fail("weights %s for %d channels to %d" % (w.shape, ic, oc))
    if out.shape[0] != n:
        raise c.fail("batch %d becomes %d" % (n, out.shape[0]))
    r = c.graph.reader
    sw, sh = r.integer(table, 1), r.integer(table, 2)
    dw, dh = r.integer(table, first, 1), r.integer(table, first + 1, 1)
    padding = r.byte(table, 0)
    ph = _window(c, padding, ih, kh, sh, dh, oh)
    pw = _window(c, padding, iw, kw, sw, dw, ow)
    low, high = c.activation(r.byte(table, act), out)
    view, scales = _weights(c, w, oc, 3 if depthwise else 0)
    _zero_weights(c, w)
    p = array(
        "i",
        (n, ih, iw, ic, oh, ow, oc, kh, kw, sh, sw, dh, dw, ph, pw)
        + (c.zero(x), c.zero(out), low, high, 1 if scales > 1 else 0, fc),
    )
    mul, shift = _multipliers(c, x, w, out)
    name = "depthwise_conv_2d" if depthwise else "conv_2d"
    return c.kernel(name, c.data(out), c.data(x), view, _bias(c, oc), mul, shift, p)


def conv_2d(c: Call) -> "Step":
    return _convolution(c, False)


def depthwise_conv_2d(c: Call) -> "Step":
    return _convolution(c, True)


def fully_connected(c: Call) -> "Step":
    c.operands(2, 3)
    x, w, out = c.input(0), c.input(1), c.output()
    table = c.options(_FULLY)
    r = c.graph.reader
    if len(w.shape) != 2 or r.byte(table, 1):
        raise c.fail("weights of shape %s, format %d" % (w.shape, r.byte(table, 1)))
    oc, depth = w.shape
    rows = x.count // depth
    if rows * depth != x.count or out.count != rows * oc or out.shape[-1:] != (oc,):
        raise c.fail("weights %s for %s to %s" % (w.shape, x.shape, out.shape))
    low, high = c.activation(r.byte(table, 0), out)
    view, scales = _weights(c, w, oc, 0)
    _zero_weights(c, w)
    p = array(
        "i",
        (1, 1, rows, depth, 1, rows, oc, 1, 1, 1, 1, 1, 1, 0, 0)
        + (c.zero(x), c.zero(out), low, high, 1 if scales > 1 else 0, depth),
    )
    bias = _bias(c, oc)
    mul, shift = _multipliers(c, x, w, out)
    return c.kernel("fully_connected", c.data(out), c.data(x), view, bias, mul, shift, p)


def _pool(c: Call, name: str) -> "Step":
    c.operands(1, 1)
    x, out = c.input(0), c.output()
    table = c.options(_POOL)
    if len(x.shape) != 4 or len(out.shape) != 4:
        raise c.fail("input and output need 4 dimensions")
    n, ih, iw, ic = x.shape
    if out.shape[0] != n or out.shape[3] != ic:
        raise c.fail("%s becomes %s" % (x.shape, out.shape))
    _, oh, ow, _ = out.shape
    c.same_scale(x, out)
    r = c.graph.reader
    padding, sw, sh = r.byte(table, 0), r.integer(table, 1), r.integer(table, 2)
    kw, kh = r.integer(table, 3), r.integer(table, 4)
    ph = _window(c, padding, ih, kh, sh, 1, oh)
    pw = _window(c, padding, iw, kw, sw, 1, ow)
    low, high = c.activation(r.byte(table, 5), out)
    p = array(
        "i",
        (n, ih, iw, ic, oh, ow, ic, kh, kw, sh, sw, 1, 1, ph, pw)
        + (c.zero(x), c.zero(out), low, high, 0, 1),
    )
    return c.kernel(name, c.data(out), c.data(x), p)


def average_pool_2d(c: Call) -> "Step":
    return _pool(c, "average_pool_2d")


def max_pool_2d(c: Call) -> "Step":
    return _pool(c, "max_pool_2d")
