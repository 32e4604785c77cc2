"""Every kernel in plain Python: the reference of the other tiers, and their fallback.

Written for MicroPython's bytecode: loops over indexes, locals instead of attributes,
one row of weights at a time made signed. Costs about 1,000 instructions per
multiply-accumulate on a microcontroller.
"""

from ..memory import signed
from ..quantize import (
    exp_of_negative,
    float_bits,
    float_product,
    float_quotient_rounded,
    high_mul,
    multiplier,
    parts,
    reciprocal_of_sum,
    scaled,
    shift_right,
)
from . import (
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _taps(start: int, step: int, kernel: int, size: int) -> "tuple[int, int]":
    """First tap and number of taps that fall into 0..size-1."""
    first = 0
    if start < 0:
        first = (step - 1 - start) // step
    count = (size - start + step - 1) // step
    if count > kernel:
        count = kernel
    count -= first
    return first, count if count > 0 else 0


def conv_2d(
    out: "Any", x: "Any", w: "Any", bias: "Any", mul: "Any", shift: "Any", p: "Any"
) -> None:
    ih, iw, ic, oh, ow, oc = p[IH], p[IW], p[IC], p[OH], p[OW], p[OC]
    kh, kw, sh, sw, dh, dw, ph, pw = p[KH], p[KW], p[SH], p[SW], p[DH], p[DW], p[PH], p[PW]
    zi, zo, lo, hi, per, fc = p[ZI], p[ZO], p[LO], p[HI], p[PER], p[FC]
    size = kh * kw * fc
    per_group = oc // (ic // fc)
    # Taps of one row lie side by side unless groups or dilation pull them apart.
    joined = dw == 1 and fc == ic
    for c in range(oc):
        row = signed(w[c * size : c * size + size])
        b, q = bias[c], c * per
        m, s = mul[q], shift[q]
        channel = c // per_group * fc
        o = c
        for n in range(p[N]):
            base = n * ih * iw * ic + channel
            for y in range(oh):
                y0 = y * sh - ph
                ky0, rows = _taps(y0, dh, kh, ih)
                for xx in range(ow):
                    x0 = xx * sw - pw
                    kx0, cols = _taps(x0, dw, kw, iw)
                    runs, run = (1, cols * fc) if joined else (cols, fc)
                    acc = b
                    for ky in range(ky0, ky0 + rows):
                        i = base + ((y0 + ky * dh) * iw + x0 + kx0 * dw) * ic
                        k = (ky * kw + kx0) * fc
                        for _ in range(runs):
                            for j in range(run):
                                acc += (x[i + j] - zi) * row[k + j]
                            i += ic * dw
                            k += fc
                    v = scaled(acc, m, s) + zo
                    out[o] = lo if v < lo else hi if v > hi else v
                    o += oc


def depthwise_conv_2d(
    out: "Any", x: "Any", w: "Any", bias: "Any", mul: "Any", shift: "Any", p: "Any"
) -> None:
    ih, iw, ic, oh, ow, oc = p[IH], p[IW], p[IC], p[OH], p[OW], p[OC]
    kh, kw, sh, sw, dh, dw, ph, pw = p[KH], p[KW], p[SH], p[SW], p[DH], p[DW], p[PH], p[PW]
    zi, zo, lo, hi, per = p[ZI], p[ZO], p[LO], p[HI], p[PER]
    factor = p[FC]
    for c in range(oc):
        taps = signed(bytes([w[k * oc + c] for k in range(kh * kw)]))
        b, q = bias[c], c * per
        m, s = mul[q], shift[q]
        o = c
        for n in range(p[N]):
            base = n * ih * iw * ic + c // factor
            for y in range(oh):
                y0 = y * sh - ph
                ky0, rows = _taps(y0, dh, kh, ih)
                for xx in range(ow):
                    x0 = xx * sw - pw
                    kx0, cols = _taps(x0, dw, kw, iw)
                    acc = b
                    for ky in range(ky0, ky0 + rows):
                        i = base + ((y0 + ky * dh) * iw + x0 + kx0 * dw) * ic
                        k = ky * kw + kx0
                        for j in range(cols):
                            acc += (x[i] - zi) * taps[k + j]
                            i += ic * dw
                    v = scaled(acc, m, s) + zo
                    out[o] = lo if v < lo else hi if v > hi else v
                    o += oc


def fully_connected(
    out: "Any", x: "Any", w: "Any", bias: "Any", mul: "Any", shift: "Any", p: "Any"
) -> None:
    depth, oc = p[IC], p[OC]
    zi, zo, lo, hi, per = p[ZI], p[ZO], p[LO], p[HI], p[PER]
    for c in range(oc):
        row = signed(w[c * depth : c * depth + depth])
        q = c * per
        m, s = mul[q], shift[q]
        for r in range(p[OW]):
            i = r * depth
            acc = bias[c]
            for j in range(depth):
                acc += (x[i + j] - zi) * row[j]
            v = scaled(acc, m, s) + zo
            out[r * oc + c] = lo if v < lo else hi if v > hi else v


def _pool(out: "Any", x: "Any", p: "Any", average: bool) -> None:
    ih, iw, ic, oh, ow = p[IH], p[IW], p[IC], p[OH], p[OW]
    sh, sw, ph, pw, lo, hi = p[SH], p[SW], p[PH], p[PW], p[LO], p[HI]
    o = 0
    for n in range(p[N]):
        for y in range(oh):
            y0 = y * sh - ph
            ky0, rows = _taps(y0, 1, p[KH], ih)
            for xx in range(ow):
                x0 = xx * sw - pw
                kx0, cols = _taps(x0, 1, p[KW], iw)
                start = ((n * ih + y0 + ky0) * iw + x0 + kx0) * ic
                count = rows * cols
                for c in range(start, start + ic):
                    v = 0 if average else -128
                    for ky in range(rows):
                        i = c + ky * iw * ic
                        for _ in range(cols):
                            if average:
                                v += x[i]
                            elif x[i] > v:
                                v = x[i]
                            i += ic
                    if average:
                        half = count // 2
                        v = (v + half) // count if v > 0 else -((half - v) // count)
                    out[o] = lo if v < lo else hi if v > hi else v
                    o += 1


def average_pool_2d(out: "Any", x: "Any", p: "Any") -> None:
    _pool(out, x, p, True)


def max_pool_2d(out: "Any", x: "Any", p: "Any") -> None:
    _pool(out, x, p, False)


def add(out: "Any", a: "Any", b: "Any", p: "Any") -> None:
    d1, d2, d3 = p[1], p[2], p[3]
    a3, b3 = p[7], p[11]
    za, zb, zo, lo, hi, m, s, ma, sa, mb, sb = p[12:23]
    o = 0
    for i in range(p[0]):
        for j in range(d1):
            for k in range(d2):
                ia = i * p[4] + j * p[5] + k * p[6]
                ib = i * p[8] + j * p[9] + k * p[10]
                for _ in range(d3):
                    v = scaled((a[ia] - za) << 20, ma, sa) + scaled((b[ib] - zb) << 20, mb, sb)
                    v = scaled(v, m, s) + zo
                    out[o] = lo if v < lo else hi if v > hi else v
                    o += 1
                    ia += a3
                    ib += b3


def mul(out: "Any", a: "Any", b: "Any", p: "Any") -> None:
    d1, d2, d3 = p[1], p[2], p[3]
    a3, b3 = p[7], p[11]
    za, zb, zo, lo, hi, m, s = p[12:19]
    o = 0
    for i in range(p[0]):
        for j in range(d1):
            for k in range(d2):
                ia = i * p[4] + j * p[5] + k * p[6]
                ib = i * p[8] + j * p[9] + k * p[10]
                for _ in range(d3):
                    v = scaled((a[ia] - za) * (b[ib] - zb), m, s) + zo
                    out[o] = lo if v < lo else hi if v > hi else v
                    o += 1
                    ia += a3
                    ib += b3


def mean(out: "Any", x: "Any", p: "Any") -> None:
    k0, r0, k1, r1, k2, zi, zo, m, s = p
    bias = zi * r0 * r1
    o = 0
    for a in range(k0):
        for b in range(k1):
            for c in range(k2):
                total = 0
                for i in range(r0):
                    at = (((a * r0 + i) * k1 + b) * r1) * k2 + c
                    for _ in range(r1):
                        total += x[at]
                        at += k2
                v = scaled(total - bias, m, s) + zo
                out[o] = -128 if v < -128 else 127 if v > 127 else v
                o += 1


def softmax(out: "Any", x: "Any", p: "Any") -> None:
    rows, depth, m, s, radius = p
    for at in range(0, rows * depth, depth):
        top = -128
        for i in range(at, at + depth):
            if x[i] > top:
                top = x[i]
        total = 0
        for i in range(at, at + depth):
            d = x[i] - top
            if d >= -radius:
                total += shift_right(exp_of_negative(scaled(d, m, s), 5), 12)
        inverse, bits = reciprocal_of_sum(total)
        for i in range(at, at + depth):
            v = -128
            d = x[i] - top
            if d >= -radius:
                e = exp_of_negative(scaled(d, m, s), 5)
                v = shift_right(high_mul(inverse, e), bits + 23) - 128
            out[i] = 127 if v > 127 else v


def lookup(out: "Any", x: "Any", table: "Any") -> None:
    for i in range(len(out)):
        out[i] = table[x[i] & 255]


def pad(out: "Any", x: "Any", p: "Any") -> None:
    d0, d1, d2, d3 = p[0:4]
    o1, o2, o3 = d1 + p[5] + p[9], d2 + p[6] + p[10], d3 + p[7] + p[11]
    value = p[12]
    for i in range(len(out)):
        out[i] = value
    i = 0
    for a in range(d0):
        for b in range(d1):
            for c in range(d2):
                o = (((a + p[4]) * o1 + b + p[5]) * o2 + c + p[6]) * o3 + p[7]
                out[o : o + d3] = x[i : i + d3]
                i += d3


def concatenation(out: "Any", inputs: "Any", p: "Any") -> None:
    o = 0
    for step in range(p[0]):
        for k in range(len(inputs)):
            n = p[1 + k]
            out[o : o + n] = inputs[k][step * n : step * n + n]
            o += n


def quantize(out: "Any", x: "Any", p: "Any") -> None:
    zero, mantissa, exponent, lo, hi = p
    for i in range(len(out)):
        bits = float_bits(x, 4 * i)
        e = (bits >> 23) & 255
        f = bits & 0x7FFFFF
        if e == 255:
            v = 0 if f else 1 << 32  # not a number: the zero point
        elif e:
            v = float_quotient_rounded(f | 0x800000, e - 150, mantissa, exponent)
        else:
            v = float_quotient_rounded(f, -149, mantissa, exponent)
        v = zero - v if bits & 0x80000000 else zero + v
        out[i] = lo if v < lo else hi if v > hi else v


def dequantize(out: "Any", x: "Any", p: "Any") -> None:
    zero, mantissa, exponent = p[0], p[1], p[2]
    for i in range(len(x)):
        v = x[i] - zero
        bits = 0
        if v:
            f, e = float_product(mantissa, exponent, *_normal(abs(v)))
            bits = (f & 0x7FFFFF) | (e + 150) << 23
            if v < 0:
                bits |= 0x80000000
        for k in range(4):
            byte = (bits >> (8 * k)) & 255
            out[4 * i + k] = byte - 256 if byte > 127 else byte


def _normal(n: int) -> "tuple[int, int]":
    """A small positive integer as a float32's mantissa and exponent."""
    e = 0
    while n < 0x800000:
        n <<= 1
        e -= 1
    return n, e


def multipliers(mul: "Any", shift: "Any", scales: "Any", p: "Any") -> int:
    xm, xe = parts(p[0])
    om, oe = parts(p[1])
    for c in range(len(mul)):
        wm, we = parts(float_bits(scales, 4 * c))
        if not wm:
            return c
        m, s = multiplier(xm * wm, xe + we, om, oe)
        if s > 30:
            return c
        mul[c] = m
        shift[c] = s
    return -1
