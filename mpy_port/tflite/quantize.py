"""The arithmetic of quantised models, in integers, bit for bit that of TensorFlow Lite Micro.

Theory of operation. TensorFlow Lite Micro prepares a model with doubles and runs it
with 32-bit integers. Both are done here with Python integers only, because a board's
floats have 32 bits and would give other multipliers. Three rules:

* A float32 is a pair (mantissa of 24 bits, exponent), value = mantissa * 2^exponent.
  Products of two scales have at most 48 bits and are exact in a double.
* A quotient is rounded as the hardware would: to nearest, ties to even, to 53 bits for
  a double and 24 for a float. Its conversion to a 31-bit multiplier then rounds ties
  away from zero. Both roundings are carried out one after the other.
* At run time, `scaled` multiplies by such a multiplier with two roundings, as the
  reference kernels do: a doubling high multiplication to nearest with ties up, then a
  right shift with ties away from zero.

Where C would overflow an int32, the value wraps here too (`wrap`), so that hostile
biases give the same bytes in every kernel tier.

Source: the reference kernels of TensorFlow Lite Micro and gemmlowp's fixed-point
documentation; checked against the former by the conformance zoo in tests/zoo.
"""

from .errors import ModelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Scales outside 2^-60..2^60 are nonsense, and products of two would leave float32.
_LOWEST, _HIGHEST = 127 - 60, 127 + 60
LOWEST_SCALE, HIGHEST_SCALE = _LOWEST << 23, (_HIGHEST << 23) + 0x7FFFFF  # float32 bits


def parts(bits: int) -> "tuple[int, int]":
    """Mantissa and exponent of a positive float32; (0, 0) when it cannot be a scale."""
    exponent = bits >> 23
    if not _LOWEST <= exponent <= _HIGHEST:
        return 0, 0
    return (bits & 0x7FFFFF) | 0x800000, exponent - 150


def scale_parts(bits: int, where: str) -> "tuple[int, int]":
    """Like `parts`, but ModelError when the bits are no usable scale."""
    mantissa, exponent = parts(bits)
    if not mantissa:
        raise ModelError("scale with float32 bits 0x%x is not usable" % bits, where)
    return mantissa, exponent


def _round_even(value: int, drop: int, rest: int) -> int:
    """value / 2^drop to nearest, ties to even; `rest`: non-zero when value was cut off."""
    low = value & ((1 << drop) - 1)
    half = 1 << (drop - 1)
    value >>= drop
    if low > half or (low == half and (rest or value & 1)):
        value += 1
    return value


def multiplier(n: int, n_exp: int, d: int, d_exp: int) -> "tuple[int, int]":
    """(multiplier of 31 bits, shift) for n*2^n_exp / (d*2^d_exp); shift > 0 means left.

    n has 47 or 48 bits, d has 24. Value = multiplier / 2^31 * 2^shift.
    """
    q, rest = divmod(n << 32, d)  # 55 to 57 bits
    drop = 2
    top = q >> 55
    while top:
        drop += 1
        top >>= 1
    x = _round_even(q, drop, rest)  # what a double holds
    shift = drop + 21 + n_exp - d_exp
    m = (x + (1 << 21)) >> 22
    if m >> 31:
        m >>= 1
        shift += 1
    if shift < -31:
        return 0, 0
    return m, shift


def wide(mantissa: int) -> int:
    """A 24-bit mantissa as the 48-bit numerator that `multiplier` takes (times 2^24)."""
    return mantissa << 24


def float_product(a: int, a_exp: int, b: int, b_exp: int) -> "tuple[int, int]":
    """Product of two float32 rounded to float32."""
    p = a * b
    drop = 24 if p >> 47 else 23
    p = _round_even(p, drop, 0)
    if p >> 24:
        p >>= 1
        drop += 1
    return p, a_exp + b_exp + drop


def float_quotient_rounded(n: int, n_exp: int, d: int, d_exp: int) -> int:
    """The float32 quotient of two positive float32, rounded to an integer, ties away.

    n has any number of bits up to 24 (denormals); d has 24.
    """
    if not n:
        return 0
    while not n >> 23:
        n <<= 1
        n_exp -= 1
    q, rest = divmod(n << 26, d)  # 26 or 27 bits
    drop = 3 if q >> 26 else 2
    x = _round_even(q, drop, rest)
    exp = n_exp - d_exp - 26 + drop
    if exp >= 0:
        return x << min(exp, 64)
    if exp < -25:
        return 0
    return (x + (1 << (-exp - 1))) >> -exp


def wrap(x: int) -> int:
    """x as a C int32."""
    return ((x + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def high_mul(a: int, b: int) -> int:
    """Doubling high multiplication of two int32, to nearest, ties up."""
    if a == b == -0x80000000:
        return 0x7FFFFFFF
    return (a * b + 0x40000000) >> 31


def shift_right(x: int, n: int) -> int:
    """x / 2^n to nearest, ties away from zero."""
    if not n:
        return x
    return (x + (1 << (n - 1)) - (1 if x < 0 else 0)) >> n


def scaled(x: int, m: int, shift: int) -> int:
    """x * m / 2^31 * 2^shift with the two roundings of the reference kernels."""
    if shift > 0:
        return (wrap(x << shift) * m + 0x40000000) >> 31
    x = (wrap(x) * m + 0x40000000) >> 31
    if shift:
        x = (x + (1 << (-shift - 1)) - (1 if x < 0 else 0)) >> -shift
    return x


def activation_range(activation: int, bits: int, zero: int, where: str) -> "tuple[int, int]":
    """Lowest and highest int8 value after a fused activation (schema number)."""
    low, high = -128, 127
    if activation in (1, 3):  # RELU, RELU6
        low = max(low, zero)
    if activation in (2, 3):  # RELU_N1_TO_1, RELU6
        d, d_exp = scale_parts(bits, where)
        top = 0xC00000
        top_exp = -21 if activation == 3 else -23
        if activation == 2:
            top = 0x800000
            low = max(low, zero - float_quotient_rounded(top, top_exp, d, d_exp))
        high = min(high, zero + float_quotient_rounded(top, top_exp, d, d_exp))
    if not 0 <= activation <= 3:
        raise ModelError("fused activation %d is not supported" % activation, where)
    return low, high


def _saturating_shift_left(x: int, n: int) -> int:
    x <<= n
    return max(-0x80000000, min(0x7FFFFFFF, x))


_EXP_FACTORS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)


def exp_of_negative(a: int, integer_bits: int) -> int:
    """exp(a) with 31 fraction bits, for a <= 0 with `integer_bits` before the point.

    The part of a in [-1/4, 0) goes through a polynomial around -1/8; every further bit
    of a that is set multiplies by a constant.
    """
    if a == 0:
        return 0x7FFFFFFF
    fraction = 31 - integer_bits
    quarter = 1 << (fraction - 2)
    near = (a & (quarter - 1)) - quarter
    x = (near << integer_bits) + (1 << 28)
    x2 = high_mul(x, x)
    x3 = high_mul(x2, x)
    x4 = shift_right(high_mul(x2, x2), 2)
    series = shift_right(high_mul(x4 + x3, 715827883) + x2, 1)
    result = 1895147668 + high_mul(1895147668, x + series)
    rest = near - a
    for k in range(integer_bits + 2):
        if rest & (1 << (fraction - 2 + k)):
            result = high_mul(result, _EXP_FACTORS[k])
    return result


def inverse_of_one_plus(a: int) -> int:
    """1 / (1 + a) with 31 fraction bits, for a in [0, 1) with 31 fraction bits.

    Three Newton steps from 48/17 - 32/17 * (1 + a) / 2, the best line.
    """
    half = (a + 0x80000000) >> 1
    x = 1515870810 + high_mul(half, -1010580540)
    for _ in range(3):
        x += _saturating_shift_left(high_mul(x, (1 << 29) - high_mul(half, x)), 2)
    return _saturating_shift_left(x, 1)


def logistic(a: int) -> int:
    """1 / (1 + exp(-a)) with 31 fraction bits, for a with 4 integer bits."""
    if a == 0:
        return 1 << 30
    positive = inverse_of_one_plus(exp_of_negative(-abs(a), 4))
    return positive if a > 0 else 0x7FFFFFFF - positive


def reciprocal_of_sum(total: int) -> "tuple[int, int]":
    """(1 / total as a fraction of 31 bits, bits to shift it right by).

    total: sum of exponentials with 12 integer and 19 fraction bits, 0 < total < 2^32.
    """
    headroom = 0
    while not (total << headroom) & 0x80000000:
        headroom += 1
    return inverse_of_one_plus((total << headroom) - 0x80000000), 12 - headroom


def input_radius(integer_bits: int, shift: int) -> int:
    """The largest input difference that still fits after a left shift."""
    return (((1 << integer_bits) - 1) << (31 - integer_bits)) >> shift


def float_bits(data: "Any", at: int) -> int:
    """The 32 bits of the little-endian float at byte `at` of a byte view."""
    value: int = data[at] & 255 | (data[at + 1] & 255) << 8
    value |= (data[at + 2] & 255) << 16 | (data[at + 3] & 255) << 24
    return value
