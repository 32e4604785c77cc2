"""Integer features of a sensor window: raw samples in, the model's int8 input out.

Theory of operation. Every step is integer arithmetic with floor division and
arithmetic shifts, which Python defines in the same way everywhere, so one window
gives the same bytes on CPython and on a microcontroller whose floats have 32 bits.
The parameters come from the domain's vector space, because sites whose inputs are
prepared differently cannot compare their outcomes.

Two kinds:

"stats8"  eight numbers per axis, ordered by kind first and axis second:
          mean, standard deviation, minimum, maximum, mean absolute difference of
          neighbours, and the means of the first three quarters less the mean of the
          whole. 6 axes give 48 features.
"raw"     the samples themselves, for a convolutional model, or a row of a table as a window
          of one sample; parameters per axis.

Each number f then becomes clamp(((f - offset) * mul + 2^(shift-1)) >> shift, -128, 127).
The order "kind first" lets one loop fill the result without lists.

Cost: "stats8" reads every sample twice and makes no object per sample as long as the
squares fit a small integer (31 bits on 32-bit MicroPython), which is why deviations are
shifted before they are added up; larger values stay correct and are only slower.
"""

from edge_agent.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from typing import Sequence

    from edge_agent.domain import Features as Spec

KINDS = ("stats8", "raw")
MAX_WINDOW = 4096
MAX_AXES = 16
MAX_COLUMNS = 64  # axes of "raw"


def isqrt(n: int) -> int:
    """The largest r with r * r <= n, for n >= 0."""
    if n < 2:
        return n
    # A power of two that is not below the root; Newton's steps then only fall.
    x = 1
    m = n
    while m:
        m >>= 2
        x <<= 1
    while True:
        y = (x + n // x) >> 1
        if y >= x:
            return x
        x = y


class Features:
    """Turns windows into model input.

    spec: the domain's `features`, a named tuple (kind, axes, window, hop, offset, mul,
    shift). offset and mul hold one integer per feature ("stats8": 8 * axes) or per axis
    ("raw"). hop is the distance of two windows in samples.

    Attributes: kind, axes, window, hop, length (bytes that `apply` returns).
    Raises ConfigError naming the field that is wrong.
    """

    def __init__(self, spec: "Spec") -> None:
        self.kind = spec.kind
        if self.kind not in KINDS:
            raise ConfigError(
                "unknown kind " + repr(self.kind),
                "features.kind",
                "This version knows " + ", ".join(KINDS) + "; a newer one may know more",
            )
        raw = self.kind == "raw"
        self.axes = _integer(spec.axes, "axes", 1, MAX_COLUMNS if raw else MAX_AXES)
        self.window = _integer(spec.window, "window", 1 if raw else 4, MAX_WINDOW)
        self.hop = _integer(spec.hop, "hop", 1, MAX_WINDOW)
        self.shift = _integer(spec.shift, "shift", 1, 30)
        if not raw:
            if self.window % 4:
                raise ConfigError("must be a multiple of 4", "features.window")
            count = 8 * self.axes
            self.length = count
        else:
            count = self.axes
            self.length = self.window * self.axes
        self.offset = _integers(spec.offset, "offset", count)
        self.mul = _integers(spec.mul, "mul", count)

    def apply(self, samples: "array[int]") -> bytes:
        """The model's int8 input, `length` bytes.

        samples: array('h') of window * axes values, interleaved axis by axis.
        """
        n = self.window * self.axes
        if len(samples) != n:
            raise ConfigError(
                "%d samples where %d are due" % (len(samples), n),
                "window",
                "Sensor and domain must agree on window length and axes",
            )
        out = bytearray(self.length)
        if self.kind == "raw":
            self._raw(samples, out)
        else:
            self._stats8(samples, out)
        return bytes(out)

    def _raw(self, samples: "array[int]", out: bytearray) -> None:
        axes = self.axes
        shift = self.shift
        half = 1 << (shift - 1)
        n = self.length
        for axis in range(axes):
            offset = self.offset[axis]
            mul = self.mul[axis]
            for i in range(axis, n, axes):
                v = ((samples[i] - offset) * mul + half) >> shift
                if v > 127:
                    v = 127
                elif v < -128:
                    v = -128
                out[i] = v & 255

    def _stats8(self, samples: "array[int]", out: bytearray) -> None:
        axes = self.axes
        window = self.window
        quarter = window >> 2
        step = quarter * axes
        n = window * axes
        for axis in range(axes):
            first = samples[axis]
            low = high = before = first
            travel = 0
            total = 0
            s0 = s1 = s2 = 0
            for q in range(4):
                part = 0
                for i in range(q * step + axis, (q + 1) * step, axes):
                    x = samples[i]
                    part += x
                    if x < low:
                        low = x
                    elif x > high:
                        high = x
                    if x < before:
                        travel += before - x
                    else:
                        travel += x - before
                    before = x
                total += part
                if q == 0:
                    s0 = part
                elif q == 1:
                    s1 = part
                elif q == 2:
                    s2 = part
            mean = total // window
            squares = 0
            for i in range(axis, n, axes):
                x = samples[i] - mean
                squares += (x * x) >> 4
            self._put(out, axis, mean)
            self._put(out, axis + axes, isqrt((squares << 4) // window))
            self._put(out, axis + 2 * axes, low)
            self._put(out, axis + 3 * axes, high)
            self._put(out, axis + 4 * axes, travel // (window - 1))
            self._put(out, axis + 5 * axes, s0 // quarter - mean)
            self._put(out, axis + 6 * axes, s1 // quarter - mean)
            self._put(out, axis + 7 * axes, s2 // quarter - mean)

    def _put(self, out: bytearray, i: int, value: int) -> None:
        v = ((value - self.offset[i]) * self.mul[i] + (1 << (self.shift - 1))) >> self.shift
        if v > 127:
            v = 127
        elif v < -128:
            v = -128
        out[i] = v & 255


def _integer(value: int, name: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError("must be a whole number %d..%d" % (low, high), "features." + name)
    return value


def _integers(values: "Sequence[int]", name: str, count: int) -> "tuple[int, ...]":
    if not isinstance(values, (list, tuple)) or len(values) != count:
        raise ConfigError("must be a list of %d whole numbers" % count, "features." + name)
    for v in values:
        if not isinstance(v, int) or isinstance(v, bool) or not -(1 << 30) < v < 1 << 30:
            raise ConfigError("must hold whole numbers below 2^30", "features." + name)
    return tuple(values)
