"""Kernels for hosts with numpy. Same results as `python`, about a hundred times faster.

Sums of products are formed by float64 matrix multiplication: with at most 2^24 terms of
at most 2^16 each every partial sum is an integer below 2^53, so the order of additions
and fused operations cannot change it. Sums wrap to int32 before scaling, as everywhere.

Operators that only move bytes, and those that run once per class, come from `python`.
"""

import numpy as np

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

    from numpy.typing import NDArray

_TERMS = 1 << 24
_COPIED = 1 << 26  # inputs that a convolution may copy into its matrix


def accepts(name: str, p: "Any") -> bool:
    if name in ("conv_2d", "fully_connected"):
        depth = p[KH] * p[KW] * p[FC]
        return bool(depth <= _TERMS and depth * p[N] * p[OH] * p[OW] <= _COPIED)
    return True


def _int8(view: "Any") -> "NDArray[np.int8]":
    return np.frombuffer(view, np.int8)


def _scaled(x: "NDArray[np.int64]", m: "Any", shift: "Any") -> "NDArray[np.int64]":
    """`quantize.scaled` for arrays; m and shift broadcast along the last axis."""
    m = np.asarray(m, np.int64)
    shift = np.asarray(shift, np.int64)
    x = x.astype(np.int32).astype(np.int64) << np.maximum(shift, 0)
    x = (x.astype(np.int32).astype(np.int64) * m + (1 << 30)) >> 31
    right = np.maximum(-shift, 0)
    half = (np.int64(1) << right) >> 1
    result: NDArray[np.int64] = (x + half - ((x < 0) & (right > 0))) >> right
    return result


def _store(out: "Any", values: "NDArray[np.int64]", zero: int, lo: int, hi: int) -> None:
    np.frombuffer(out, np.int8)[:] = np.clip(values + zero, lo, hi).ravel()


def _windows(x: "Any", p: "Any", fill: int) -> "NDArray[np.int8]":
    """View [N, OH, OW, IC, KH, KW] of the padded input; `fill` outside it."""
    n, ih, iw, ic = p[N], p[IH], p[IW], p[IC]
    reach_h = (p[OH] - 1) * p[SH] + (p[KH] - 1) * p[DH] + 1
    reach_w = (p[OW] - 1) * p[SW] + (p[KW] - 1) * p[DW] + 1
    padded = np.full((n, max(reach_h, ih + p[PH]), max(reach_w, iw + p[PW]), ic), fill, np.int8)
    padded[:, p[PH] : p[PH] + ih, p[PW] : p[PW] + iw] = _int8(x).reshape(n, ih, iw, ic)
    span = ((p[KH] - 1) * p[DH] + 1, (p[KW] - 1) * p[DW] + 1)
    view = np.lib.stride_tricks.sliding_window_view(padded, span, axis=(1, 2))
    found: NDArray[np.int8] = view[:, :: p[SH], :: p[SW], :, :: p[DH], :: p[DW]]
    return found[:, : p[OH], : p[OW]]


def conv_2d(
    out: "Any", x: "Any", w: "Any", bias: "Any", mul: "Any", shift: "Any", p: "Any"
) -> None:
    n, oh, ow, oc, ic, fc = p[N], p[OH], p[OW], p[OC], p[IC], p[FC]
    groups = ic // fc
    windows = _windows(x, p, p[ZI]).reshape(n, oh, ow, groups, fc, p[KH], p[KW])
    weights = _int8(w).reshape(groups, oc // groups, p[KH], p[KW], fc)
    acc = np.empty((n * oh * ow, oc), np.int64)
    for g in range(groups):
        taps = windows[:, :, :, g].transpose(0, 1, 2, 4, 5, 3).reshape(n * oh * ow, -1)
        rows = weights[g].reshape(oc // groups, -1).astype(np.float64)
        part = (taps.astype(np.float64) - p[ZI]) @ rows.T
        acc[:, g * (oc // groups) : (g + 1) * (oc // groups)] = part
    acc += np.frombuffer(bias, np.int32)
    _store(out, _scaled(acc, mul, shift), p[ZO], p[LO], p[HI])


def depthwise_conv_2d(
    out: "Any", x: "Any", w: "Any", bias: "Any", mul: "Any", shift: "Any", p: "Any"
) -> None:
    windows = _windows(x, p, p[ZI])
    weights = _int8(w).reshape(p[KH], p[KW], p[IC], p[FC]).astype(np.int64)
    acc = np.zeros((p[N], p[OH], p[OW], p[IC], p[FC]), np.int64)
    for ky in range(p[KH]):
        for kx in range(p[KW]):
            tap = windows[:, :, :, :, ky, kx].astype(np.int64) - p[ZI]
            acc += tap[..., None] * weights[ky, kx]
    sums = acc.reshape(-1, p[OC]) + np.frombuffer(bias, np.int32)
    _store(out, _scaled(sums, mul, shift), p[ZO], p[LO], p[HI])


def fully_connected(
    out: "Any", x: "Any", w: "Any", bias: "Any", mul: "Any", shift: "Any", p: "Any"
) -> None:
    rows = _int8(x).reshape(p[OW], p[IC]).astype(np.float64) - p[ZI]
    weights = _int8(w).reshape(p[OC], p[IC]).astype(np.float64)
    acc = (rows @ weights.T).astype(np.int64) + np.frombuffer(bias, np.int32)
    _store(out, _scaled(acc, mul, shift), p[ZO], p[LO], p[HI])


def average_pool_2d(out: "Any", x: "Any", p: "Any") -> None:
    # Pixels outside the input count for nothing: pad with zeros, and count with ones.
    total = _windows(x, p, 0).astype(np.int64).sum(axis=(4, 5))
    ones = np.ones(p[N] * p[IH] * p[IW] * p[IC], np.int8)
    count = _windows(ones, p, 0).astype(np.int64).sum(axis=(4, 5))
    half = count // 2
    values = np.where(total > 0, (total + half) // count, -((half - total) // count))
    _store(out, values, 0, p[LO], p[HI])


def max_pool_2d(out: "Any", x: "Any", p: "Any") -> None:
    _store(out, _windows(x, p, -128).max(axis=(4, 5)).astype(np.int64), 0, p[LO], p[HI])


def _operand(view: "Any", dims: "Any", strides: "Any") -> "NDArray[np.int64]":
    whole = _int8(view).astype(np.int64)
    steps = [8 * s for s in strides]
    return np.lib.stride_tricks.as_strided(whole, tuple(dims), steps, writeable=False)


def add(out: "Any", a: "Any", b: "Any", p: "Any") -> None:
    za, zb, zo, lo, hi, m, s, ma, sa, mb, sb = p[12:23]
    left = _scaled((_operand(a, p[:4], p[4:8]) - za) << 20, ma, sa)
    right = _scaled((_operand(b, p[:4], p[8:12]) - zb) << 20, mb, sb)
    _store(out, _scaled(left + right, m, s), zo, lo, hi)


def mul(out: "Any", a: "Any", b: "Any", p: "Any") -> None:
    za, zb, zo, lo, hi, m, s = p[12:19]
    product = (_operand(a, p[:4], p[4:8]) - za) * (_operand(b, p[:4], p[8:12]) - zb)
    _store(out, _scaled(product, m, s), zo, lo, hi)


def mean(out: "Any", x: "Any", p: "Any") -> None:
    zi, zo, m, s = p[5:]
    total = _int8(x).reshape(tuple(p[:5])).astype(np.int64).sum(axis=(1, 3))
    _store(out, _scaled(total - zi * p[1] * p[3], m, s), zo, -128, 127)


def lookup(out: "Any", x: "Any", table: "Any") -> None:
    np.frombuffer(out, np.int8)[:] = _int8(table)[np.frombuffer(x, np.uint8)]


def quantize(out: "Any", x: "Any", p: "Any") -> None:
    zero, mantissa, exponent, lo, hi = p
    with np.errstate(over="ignore", invalid="ignore"):
        quotient = np.frombuffer(x, np.float32) / np.float32(mantissa * 2.0**exponent)
        size = np.floor(np.abs(quotient.astype(np.float64)) + 0.5)
        rounded = np.nan_to_num(np.copysign(size, quotient), nan=0.0)
        values = np.clip(rounded + zero, lo, hi)
    np.frombuffer(out, np.int8)[:] = values.astype(np.int8)


def dequantize(out: "Any", x: "Any", p: "Any") -> None:
    scale = p[1] * 2.0 ** p[2]
    values = (_int8(x).astype(np.float64) - p[0]) * scale
    np.frombuffer(out, np.float32)[:] = values.astype(np.float32)
