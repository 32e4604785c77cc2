# mypy: ignore-errors
# ruff: noqa: F821
# (Viper's types, ptr8 and the like, are not Python's.)
"""Kernels for MicroPython's viper emitter: machine code without a compiler.

Viper's integers are machine words and its byte pointers unsigned, so a signed byte v is
taken as V = v + 128, which is v with its highest bit inverted. The windows of a convolution
are copied as words t = x - ZI, nothing where they leave the input, with their sum:

    sum of (x - ZI) * w  =  sum of t * W  -  128 * sum of t

Depthwise, where a window serves one filter, one channel's input is copied with its padding,
the filter's taps become words, and the zero point goes into the bias. The first three locals
of a viper function live in registers: they are the operands of the inner loops.

Words have 32 or 64 bits. A 32-bit load does not extend the sign where words have 64; there
`((v & mask) ^ sign) - sign` does. Only layers whose sums cannot wrap are done here (`_tame`):
at most 2^14 taps, biases below 2^28, shifts to the right. `python` does the others.
"""

from array import array

import micropython
from micropython import const

from . import python as reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The parameters' indexes again: viper needs them as constants of this module.
_N = const(0)
_IH = const(1)
_IW = const(2)
_IC = const(3)
_OH = const(4)
_OW = const(5)
_OC = const(6)
_KH = const(7)
_KW = const(8)
_SH = const(9)
_SW = const(10)
_DH = const(11)
_DW = const(12)
_PH = const(13)
_PW = const(14)
_ZI = const(15)
_ZO = const(16)
_LO = const(17)
_HI = const(18)
_PER = const(19)
_FC = const(20)

_TAME_TAPS = const(1 << 14)


@micropython.viper
def _tame(bias: ptr32, shift: ptr8, p: ptr32) -> bool:
    """Whether no sum can leave 31 bits, and every shift goes to the right."""
    sign = 1
    sign = sign << 31
    if sign < 0:
        sign = 0
    if p[_KH] * p[_KW] * p[_FC] > _TAME_TAPS:
        return False
    per = p[_PER]
    n = p[_OC]
    while n > 0:
        n -= 1
        if (((bias[n] ^ sign) - sign) + 0x10000000) >> 29:
            return False
        if shift[n * per] < 128:  # not negative
            return False
    return True


@micropython.viper
def _convolve(
    t: ptr32, w: ptr8, acc: int, x: ptr8, out: ptr8, bias: ptr32, mul: ptr32, shift: ptr8, p: ptr32
):
    """A whole layer. t: room for the words of one window."""
    sign = 1
    sign = sign << 31
    if sign < 0:
        sign = 0
    mask = sign + sign - 1
    zi = (p[_ZI] ^ sign) - sign
    zi += 128
    zo = (p[_ZO] ^ sign) - sign
    lo = (p[_LO] ^ sign) - sign
    hi = (p[_HI] ^ sign) - sign
    ih = p[_IH]
    iw = p[_IW]
    ic = p[_IC]
    oc = p[_OC]
    kw = p[_KW]
    fc = p[_FC]
    dw = p[_DW]
    per = p[_PER]
    patch = int(t)
    weights = int(w)
    together = 0
    if fc == ic and dw == 1:
        together = 1
    # Filters of one group: viper cannot divide.
    share = oc
    if fc < ic:
        share = 0
        n = 0
        while n < ic:
            n += fc
            share += 1
        groups = share
        share = 0
        n = 0
        while n < oc:
            n += groups
            share += 1
    batch = p[_N]
    while batch > 0:
        batch -= 1
        oh = p[_OH]
        y0 = 0 - p[_PH]
        while oh > 0:
            ow = p[_OW]
            x0 = 0 - p[_PW]
            while ow > 0:
                w = ptr8(weights)
                c = 0
                first = 0
                while c < oc:
                    t = ptr32(patch)
                    total = 0
                    y = y0
                    ky = p[_KH]
                    while ky > 0:
                        at = x0
                        kx = kw
                        run = fc
                        if together and y >= 0 and y < ih and at >= 0 and at + kw <= iw:
                            run = fc * kw
                            kx = 1
                        while kx > 0:
                            if y >= 0 and y < ih and at >= 0 and at < iw:
                                source = ptr8(int(x) + (y * iw + at) * ic + first)
                                acc = run
                                while acc > 0:
                                    v = (source[0] ^ 128) - zi
                                    t[0] = v
                                    total += v
                                    t = ptr32(int(t) + 4)
                                    source = ptr8(int(source) + 1)
                                    acc -= 1
                            else:
                                acc = run
                                while acc > 0:
                                    t[0] = 0
                                    t = ptr32(int(t) + 4)
                                    acc -= 1
                            at += dw
                            kx -= 1
                        y += p[_DH]
                        ky -= 1
                    first += fc
                    total = total << 7
                    end = int(t)
                    eights = end - 28
                    n = share
                    while n > 0:
                        n -= 1
                        acc = bias[c] - total
                        t = ptr32(patch)
                        while int(t) < eights:
                            acc += t[0] * (w[0] ^ 128)
                            acc += t[1] * (w[1] ^ 128)
                            acc += t[2] * (w[2] ^ 128)
                            acc += t[3] * (w[3] ^ 128)
                            acc += t[4] * (w[4] ^ 128)
                            acc += t[5] * (w[5] ^ 128)
                            acc += t[6] * (w[6] ^ 128)
                            acc += t[7] * (w[7] ^ 128)
                            t = ptr32(int(t) + 32)
                            w = ptr8(int(w) + 8)
                        while int(t) < end:
                            acc += t[0] * (w[0] ^ 128)
                            t = ptr32(int(t) + 4)
                            w = ptr8(int(w) + 1)
                        acc = ((acc & mask) ^ sign) - sign
                        # quantize.scaled, the 64-bit product in halves.
                        high = mul[c * per]
                        low = high & 65535
                        high = high >> 16
                        a = acc & 65535
                        acc = acc >> 16
                        b = acc * low
                        low = a * low
                        a = a * high
                        low = ((low >> 16) & 65535) + (a & 65535) + (b & 65535)
                        acc = acc * high + (a >> 16) + (b >> 16) + (low >> 16)
                        acc = (acc << 1) + ((((low >> 14) & 3) + 1) >> 1)
                        right = 256 - shift[c * per]
                        acc = ((acc + (acc >> 31) + (1 << (right - 1))) >> right) + zo
                        if acc < lo:
                            acc = lo
                        if acc > hi:
                            acc = hi
                        out[0] = acc
                        out = ptr8(int(out) + 1)
                        c += 1
                x0 += p[_SW]
                ow -= 1
            y0 += p[_SH]
            oh -= 1
        x = ptr8(int(x) + ih * iw * ic)


def conv_2d(
    out: "Any", x: "Any", w: "Any", bias: "Any", mul: "Any", shift: "Any", p: "Any"
) -> None:
    if _tame(bias, shift, p):
        words = bytearray(4 * p[_KH] * p[_KW] * p[_FC])
        _convolve(words, w, 0, x, out, bias, mul, shift, p)
    else:
        reference.conv_2d(out, x, w, bias, mul, shift, p)


def fully_connected(
    out: "Any", x: "Any", w: "Any", bias: "Any", mul: "Any", shift: "Any", p: "Any"
) -> None:
    conv_2d(out, x, w, bias, mul, shift, p)


@micropython.viper
def _depthwise(
    x: ptr8,
    acc: int,
    taps: ptr32,
    plane: ptr8,
    images: ptr8,
    w: ptr8,
    out: ptr8,
    bias: ptr32,
    mul: ptr32,
    shift: ptr8,
    p: ptr32,
):
    """A whole layer, channel by channel. taps, plane: room for a filter and an input plane."""
    sign = 1
    sign = sign << 31
    if sign < 0:
        sign = 0
    mask = sign + sign - 1
    zi = (p[_ZI] ^ sign) - sign
    zi += 128
    zo = (p[_ZO] ^ sign) - sign
    lo = (p[_LO] ^ sign) - sign
    hi = (p[_HI] ^ sign) - sign
    ih = p[_IH]
    iw = p[_IW]
    ic = p[_IC]
    kh = p[_KH]
    kw = p[_KW]
    sw = p[_SW]
    dw = p[_DW]
    oc = p[_OC]
    per = p[_PER]
    width = (p[_OW] - 1) * sw + (kw - 1) * dw + 1
    height = (p[_OH] - 1) * p[_SH] + (kh - 1) * p[_DH] + 1
    row = p[_DH] * width
    nine = 0
    if kh == 3 and kw == 3 and dw == 1:
        nine = 1
    weights = int(taps)
    turn = 0
    c = 0
    while c < oc:
        x = ptr8(int(w) + c)
        taps = ptr32(weights)
        total = 0
        n = kh * kw
        while n > 0:
            v = (x[0] ^ 128) - 128
            taps[0] = v
            total += v
            taps = ptr32(int(taps) + 4)
            x = ptr8(int(x) + oc)
            n -= 1
        if nine:
            taps = ptr32(weights)
            t0 = taps[0]
            t1 = taps[1]
            t2 = taps[2]
            t3 = taps[3]
            t4 = taps[4]
            t5 = taps[5]
            t6 = taps[6]
            t7 = taps[7]
            t8 = taps[8]
        start = ((bias[c] ^ sign) - sign) - zi * total
        high = mul[c * per]
        low = high & 65535
        high = high >> 16
        right = 256 - shift[c * per]
        half = 1 << (right - 1)
        o = ptr8(int(out) + c)
        image = int(images)
        batch = p[_N]
        while batch > 0:
            batch -= 1
            # The channel's input with its padding, as bytes offset by 128.
            if turn == 0 or p[_N] > 1:
                to = plane
                y = 0 - p[_PH]
                n = height
                while n > 0:
                    at = 0 - p[_PW]
                    x = ptr8(image + (y * iw + at) * ic)
                    acc = width
                    if y < 0 or y >= ih:
                        at = iw
                    while acc > 0:
                        v = zi
                        if at >= 0 and at < iw:
                            v = x[0] ^ 128
                        to[0] = v
                        to = ptr8(int(to) + 1)
                        x = ptr8(int(x) + ic)
                        at += 1
                        acc -= 1
                    y += 1
                    n -= 1
            image += ih * iw * ic
            line = int(plane)
            oh = p[_OH]
            while oh > 0:
                first = line
                n = p[_OW]
                while n > 0:
                    x = ptr8(first)
                    if nine:
                        acc = start + x[0] * t0 + x[1] * t1 + x[2] * t2
                        x = ptr8(int(x) + row)
                        acc += x[0] * t3 + x[1] * t4 + x[2] * t5
                        x = ptr8(int(x) + row)
                        acc += x[0] * t6 + x[1] * t7 + x[2] * t8
                    else:
                        acc = start
                        taps = ptr32(weights)
                        ky = kh
                        while ky > 0:
                            kx = kw
                            at = int(x)
                            while kx > 0:
                                acc += x[0] * taps[0]
                                x = ptr8(int(x) + dw)
                                taps = ptr32(int(taps) + 4)
                                kx -= 1
                            x = ptr8(at + row)
                            ky -= 1
                    acc = ((acc & mask) ^ sign) - sign
                    a = acc & 65535
                    acc = acc >> 16
                    b = acc * low
                    v = a * low
                    a = a * high
                    v = ((v >> 16) & 65535) + (a & 65535) + (b & 65535)
                    acc = acc * high + (a >> 16) + (b >> 16) + (v >> 16)
                    acc = (acc << 1) + ((((v >> 14) & 3) + 1) >> 1)
                    acc = ((acc + (acc >> 31) + half) >> right) + zo
                    if acc < lo:
                        acc = lo
                    if acc > hi:
                        acc = hi
                    o[0] = acc
                    o = ptr8(int(o) + oc)
                    first += sw
                    n -= 1
                line += p[_SH] * width
                oh -= 1
        c += 1
        turn += 1
        if turn == p[_FC]:
            turn = 0
            images = ptr8(int(images) + 1)


def depthwise_conv_2d(
    out: "Any", x: "Any", w: "Any", bias: "Any", mul: "Any", shift: "Any", p: "Any"
) -> None:
    if _tame(bias, shift, p):
        height = (p[_OH] - 1) * p[_SH] + (p[_KH] - 1) * p[_DH] + 1
        plane = bytearray(height * ((p[_OW] - 1) * p[_SW] + (p[_KW] - 1) * p[_DW] + 1))
        words = bytearray(4 * p[_KH] * p[_KW])
        _depthwise(x, 0, words, plane, x, w, out, bias, mul, shift, p)
    else:
        reference.depthwise_conv_2d(out, x, w, bias, mul, shift, p)


@micropython.viper
def _pool(x: ptr8, rows: int, columns: int, out: ptr8, q: ptr32):
    """One output pixel, all channels. q: channels, step to the next row, average, lo, hi."""
    sign = 1
    sign = sign << 31
    if sign < 0:
        sign = 0
    n = q[0]
    back = q[1] - columns * n
    average = q[2]
    lo = (q[3] ^ sign) - sign
    hi = (q[4] ^ sign) - sign
    size = rows * columns
    half = size >> 1
    step = n
    start = int(x)
    while n > 0:
        x = ptr8(start)
        start += 1
        v = 0
        r = rows
        while r > 0:
            k = columns
            while k > 0:
                u = x[0] ^ 128
                if average:
                    v += u - 128
                elif u > v:
                    v = u
                x = ptr8(int(x) + step)
                k -= 1
            x = ptr8(int(x) + back)
            r -= 1
        if average:
            negative = 0
            if v < 0:
                negative = 1
                v = 0 - v
            v += half
            # Division, bit by bit: viper has none.
            u = 0
            k = 128
            r = size << 7
            while k > 0:
                if v >= r:
                    v -= r
                    u += k
                r = r >> 1
                k = k >> 1
            v = u
            if negative:
                v = 0 - u
        else:
            v -= 128
        if v < lo:
            v = lo
        if v > hi:
            v = hi
        out[0] = v
        out = ptr8(int(out) + 1)
        n -= 1


def _pooled(out: "Any", x: "Any", p: "Any", average: int) -> None:
    ih, iw, ic, oh, ow = p[_IH], p[_IW], p[_IC], p[_OH], p[_OW]
    sh, sw, kh, kw, ph, pw = p[_SH], p[_SW], p[_KH], p[_KW], p[_PH], p[_PW]
    q = array("i", (ic, iw * ic, average, p[_LO], p[_HI]))
    o = 0
    for n in range(p[_N]):
        for y in range(oh):
            y0 = y * sh - ph
            y1 = min(ih, y0 + kh)
            y0 = max(0, y0)
            for column in range(ow):
                x0 = column * sw - pw
                x1 = min(iw, x0 + kw)
                x0 = max(0, x0)
                _pool(x[((n * ih + y0) * iw + x0) * ic :], y1 - y0, x1 - x0, out[o:], q)
                o += ic


def average_pool_2d(out: "Any", x: "Any", p: "Any") -> None:
    _pooled(out, x, p, 1)


def max_pool_2d(out: "Any", x: "Any", p: "Any") -> None:
    _pooled(out, x, p, 0)


@micropython.viper
def _pairs(a: ptr8, b: ptr8, acc: int, out: ptr8, p: ptr32, first: int):
    """add (first = 0) and mul (first = 2), see the contract. Stages: scale a, b, the result."""
    sign = 1
    sign = sign << 31
    if sign < 0:
        sign = 0
    za = ((p[12] ^ sign) - sign) + 128
    zb = ((p[13] ^ sign) - sign) + 128
    zo = (p[14] ^ sign) - sign
    lo = (p[15] ^ sign) - sign
    hi = (p[16] ^ sign) - sign
    a_base = int(a)
    b_base = int(b)
    i = 0
    while i < p[0]:
        j = 0
        while j < p[1]:
            k = 0
            while k < p[2]:
                a = ptr8(a_base + i * p[4] + j * p[5] + k * p[6])
                b = ptr8(b_base + i * p[8] + j * p[9] + k * p[10])
                n = p[3]
                while n > 0:
                    u = (a[0] ^ 128) - za
                    v = (b[0] ^ 128) - zb
                    total = 0
                    stage = first
                    if stage == 2:
                        total = u * v
                    while stage < 3:
                        acc = total
                        at = 17
                        if stage == 0:
                            acc = u << 20
                            at = 19
                        if stage == 1:
                            acc = v << 20
                            at = 21
                        high = p[at]
                        low = high & 65535
                        high = high >> 16
                        x = acc & 65535
                        acc = acc >> 16
                        y = acc * low
                        low = x * low
                        x = x * high
                        low = ((low >> 16) & 65535) + (x & 65535) + (y & 65535)
                        acc = acc * high + (x >> 16) + (y >> 16) + (low >> 16)
                        acc = (acc << 1) + ((((low >> 14) & 3) + 1) >> 1)
                        right = 0 - ((p[at + 1] ^ sign) - sign)
                        if right > 0:
                            acc = (acc + (acc >> 31) + (1 << (right - 1))) >> right
                        total += acc
                        stage += 1
                    acc += zo
                    if acc < lo:
                        acc = lo
                    if acc > hi:
                        acc = hi
                    out[0] = acc
                    out = ptr8(int(out) + 1)
                    a = ptr8(int(a) + p[7])
                    b = ptr8(int(b) + p[11])
                    n -= 1
                k += 1
            j += 1
        i += 1


def add(out: "Any", a: "Any", b: "Any", p: "Any") -> None:
    _pairs(a, b, 0, out, p, 0)


def mul(out: "Any", a: "Any", b: "Any", p: "Any") -> None:
    if p[18] > 0:  # the shift: sums could wrap
        reference.mul(out, a, b, p)
    else:
        _pairs(a, b, 0, out, p, 2)
