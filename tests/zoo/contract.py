"""What kernels may rely on, checked from outside for one call.

Kernels trust the loader (see mpy_port/tflite/kernels). The tests hold every call of
every model, sound or damaged, against the rules written here, so that a kernel that
reads memory by pointer stays inside its buffers.
"""

from mpy_port.tflite.kernels import (
    DH,
    DW,
    FC,
    HI,
    IC,
    IH,
    IW,
    KH,
    KW,
    LO,
    OC,
    OH,
    OW,
    PER,
    PH,
    PW,
    SH,
    SW,
    ZI,
    ZO,
    N,
)  # fmt: skip


class Broken(Exception):
    """A call that no kernel should ever get."""


def need(condition, text):
    if not condition:
        raise Broken(text)


def _multiplier(m, s):
    need(0 <= m < 1 << 31 and -31 <= s <= 30, "multiplier %d, shift %d" % (m, s))


def _range(lo, hi):
    need(-128 <= lo <= 127 and -128 <= hi <= 127, "range %d..%d" % (lo, hi))


def _zeros(*zeros):
    need(all(-128 <= z <= 127 for z in zeros), "zero points %r" % (zeros,))


def _window(out, x, p):
    need(all(v > 0 for v in p[: DW + 1]), "sizes %r" % list(p))
    need(p[PH] >= 0 and p[PW] >= 0, "padding")
    need(len(x) == p[N] * p[IH] * p[IW] * p[IC], "input has %d" % len(x))
    need(len(out) == p[N] * p[OH] * p[OW] * p[OC], "output has %d" % len(out))
    for size, kernel, stride, dilation, before, count in (
        (p[IH], p[KH], p[SH], p[DH], p[PH], p[OH]),
        (p[IW], p[KW], p[SW], p[DW], p[PW], p[OW]),
    ):
        last = (count - 1) * stride - before
        need(before < (kernel - 1) * dilation + 1, "padding wider than the filter")
        need(last < size, "last window starts at %d of %d" % (last, size))
    _range(p[LO], p[HI])
    _zeros(p[ZI], p[ZO])


def _weighted(w, bias, mul, shift, p, size):
    need(len(w) == size, "weights have %d, needed are %d" % (len(w), size))
    need(len(bias) == p[OC] and bias.itemsize == 4, "bias has %d" % len(bias))
    need(p[PER] in (0, 1), "per channel %d" % p[PER])
    need(len(mul) == len(shift) == (p[OC] if p[PER] else 1), "multipliers")
    need(mul.itemsize == 4 and shift.itemsize == 1, "types of multipliers")
    for m, s in zip(mul, shift, strict=True):
        _multiplier(m, s)


def _conv_2d(out, x, w, bias, mul, shift, p):
    _window(out, x, p)
    need(p[IC] % p[FC] == 0 and p[OC] % (p[IC] // p[FC]) == 0, "groups")
    _weighted(w, bias, mul, shift, p, p[OC] * p[KH] * p[KW] * p[FC])


def _depthwise_conv_2d(out, x, w, bias, mul, shift, p):
    _window(out, x, p)
    need(p[OC] == p[IC] * p[FC], "channels")
    _weighted(w, bias, mul, shift, p, p[OC] * p[KH] * p[KW])


def _fully_connected(out, x, w, bias, mul, shift, p):
    need(all(p[k] == 1 for k in (N, IH, OH, KH, KW, SH, SW, DH, DW)), "sizes")
    need(p[PH] == p[PW] == 0 and p[FC] == p[IC] and p[IW] == p[OW], "sizes")
    _window(out, x, p)
    _weighted(w, bias, mul, shift, p, p[OC] * p[IC])


def _pool(out, x, p):
    need(p[OC] == p[IC] and p[DH] == p[DW] == 1, "channels")
    _window(out, x, p)


def _pair(out, a, b, p, length):
    need(len(p) == length, "parameters")
    dims = p[:4]
    need(min(dims) > 0 and len(out) == dims[0] * dims[1] * dims[2] * dims[3], "output")
    for operand, strides in ((a, p[4:8]), (b, p[8:12])):
        need(min(strides) >= 0, "strides")
        reach = sum((d - 1) * s for d, s in zip(dims, strides, strict=True))
        need(reach < len(operand), "operand of %d read to %d" % (len(operand), reach))
    _zeros(*p[12:15])
    _range(p[15], p[16])
    for k in range(17, length, 2):
        _multiplier(p[k], p[k + 1])


def _add(out, a, b, p):
    _pair(out, a, b, p, 23)
    need(max(p[18], p[20], p[22]) <= 0, "left shifts")


def _mul(out, a, b, p):
    _pair(out, a, b, p, 19)


def _mean(out, x, p):
    need(len(p) == 9 and min(p[:5]) > 0, "parameters")
    need(len(x) == p[0] * p[1] * p[2] * p[3] * p[4], "input")
    need(len(out) == p[0] * p[2] * p[4], "output")
    _zeros(p[5], p[6])
    _multiplier(p[7], p[8])


def _softmax(out, x, p):
    rows, depth, m, s, radius = p
    need(rows > 0 and 0 < depth < 4096 and len(x) == len(out) == rows * depth, "sizes")
    need(1 << 30 <= m < 1 << 31 and 1 <= s <= 31 and radius >= 0, "multiplier")
    need(radius << s < 1 << 31, "radius")


def _lookup(out, x, table):
    need(len(table) == 256 and table.itemsize == 1 and len(out) == len(x), "table")


def _pad(out, x, p):
    need(len(p) == 13 and min(p[:4]) > 0 and min(p[4:12]) >= 0, "parameters")
    size = 1
    for k in range(4):
        size *= p[k] + p[4 + k] + p[8 + k]
    need(len(out) == size and len(x) == p[0] * p[1] * p[2] * p[3], "sizes")
    _zeros(p[12])


def _concatenation(out, inputs, p):
    need(len(p) == 1 + len(inputs) and min(p) > 0, "parameters")
    for x, n in zip(inputs, p[1:], strict=True):
        need(len(x) == n * p[0], "input")
    need(len(out) == p[0] * sum(p[1:]), "output")


def _float(p):
    need(len(p) == 5 and 1 << 23 <= p[1] < 1 << 24 and -90 < p[2] < 60, "scale")
    _zeros(p[0])


def _quantize(out, x, p):
    need(len(x) == 4 * len(out), "sizes")
    _float(p)


def _dequantize(out, x, p):
    need(len(out) == 4 * len(x), "sizes")
    _float(p)


RULES = {
    "add": _add,
    "average_pool_2d": _pool,
    "concatenation": _concatenation,
    "conv_2d": _conv_2d,
    "depthwise_conv_2d": _depthwise_conv_2d,
    "dequantize": _dequantize,
    "fully_connected": _fully_connected,
    "lookup": _lookup,
    "max_pool_2d": _pool,
    "mean": _mean,
    "mul": _mul,
    "pad": _pad,
    "quantize": _quantize,
    "softmax": _softmax,
}


def check(interpreter):
    """Every call of a loaded model. Broken when a rule is."""
    for name, _, args in interpreter.steps():
        RULES[name](*args)
