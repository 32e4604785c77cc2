"""Where the kernel tier is picked, and what every kernel looks like.

A tier is a module with functions named and called as below. A tier need not have all
of them, nor take every case: one that exports `accepts(name, p)` is asked before each
use. What the best tier lacks comes from the next, and the last, `python`, has
everything. A tier that exports `Reader` also reads models with that class (see flatbuffer).
To add a tier, add its line to TIERS: no other place knows the names.

Kernels trust their arguments. Whatever they could read or write wrongly was checked
when the model was loaded (`op_resolver`), and each buffer is exactly as long as the
parameters say. Activations are views of the arena with signed items; weights are views
of the model with unsigned items at any alignment. Kernels return nothing and allocate
as little as they can. Array types: bias 'i', mul 'i', shift 'b', p 'i'.

    conv_2d(out, x, w, bias, mul, shift, p)            w: [OC, KH, KW, FC]
    depthwise_conv_2d(out, x, w, bias, mul, shift, p)  w: [KH, KW, OC]
    fully_connected(out, x, w, bias, mul, shift, p)    w: [OC, IC]; rows are p[OW]
    average_pool_2d(out, x, p)    max_pool_2d(out, x, p)
    add(out, a, b, p)             mul(out, a, b, p)
    mean(out, x, p)               softmax(out, x, p)
    lookup(out, x, table)         out[i] = table[x[i] & 255], table has 256 signed items
    pad(out, x, p)                concatenation(out, inputs, p)
    quantize(out, x, p)           x: float32     dequantize(out, x, p)    out: float32
    multipliers(mul, shift, scales, p) -> int          at load; see below

Convolutions, pooling, fully connected: p is indexed by the constants N to FC. Output
(y, x, c) is bias[c] + the sum of (input - ZI) * weight over the taps inside the input, at
rows y * SH - PH + ky * DH; then `quantize.scaled` by mul and shift, plus ZO, clamped to
LO..HI. mul and shift have OC entries when PER is 1, else one. Pooling uses N to PW, LO
and HI.

add, mul: p = 4 dimensions of the output, 4 strides of a, 4 of b (0 where broadcast), za,
zb, zo, lo, hi, mul, shift, then for add: mul and shift of a, mul and shift of b. add
shifts (input - zero) left by 20, scales each, adds, scales the sum.
mean: p = K0 R0 K1 R1 K2 (kept and reduced dimensions in turn), zi, zo, mul, shift;
    scaled(sum - zi * R0 * R1) + zo.
softmax: p = rows, depth, mul, shift, radius.
pad: p = 4 input dimensions, 4 counts before, 4 counts after, value.
concatenation: p = outer count, then for each input how many items it gives per outer step.
quantize, dequantize: p = zero point, mantissa and exponent of the scale, lo, hi.
multipliers: fills mul and shift from scales (float32 bytes, one per channel) and p = bits
    of the input's scale and of the output's. Returns -1, or the channel whose scale or
    multiplier is unusable.
"""

from ..errors import ModelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

(
    N, IH, IW, IC, OH, OW, OC, KH, KW, SH, SW, DH, DW, PH, PW, ZI, ZO, LO, HI, PER, FC,
) = range(21)  # fmt: skip
# FC: input channels that one filter sees (IC, or IC / groups); channel multiplier for depthwise.

# Best first: (name, module in this package).
TIERS = (
    ("native", "native"),
    ("viper", "viper"),
    ("numpy", "host_numpy"),
    ("python", "python"),
)


class Tiers:
    """The modules to take kernels from, best first. Each is imported when it is needed:
    on a board most models never need a second one, whose code would take heap.

    tier: forces the first of them; None: the best there is here. ModelError when the tier
    has no such name or cannot be imported here.
    """

    def __init__(self, tier: "str | None" = None) -> None:
        names = [name for name, _ in TIERS]
        if tier is not None and tier not in names:
            raise ModelError("no kernel tier %r" % tier, "", "Choose from " + ", ".join(names))
        self._forced = tier
        self._rest = [t for t in TIERS if tier in (None, t[0]) or t[0] == "python"]
        self._found: list[Any] = []
        self.first = self._next()
        self.name = tier_name(self.first)

    def _next(self) -> "Any":
        """Import the best that is left."""
        while True:
            name, module = self._rest.pop(0)
            try:
                found = __import__(__name__ + "." + module, None, None, ("accepts",), 0)
            except ImportError as error:
                if name == "python":
                    raise  # it needs nothing that could be missing
                if name == self._forced:
                    raise ModelError("kernel tier %s is not usable here: %s" % (name, error))
                continue
            self._found.append(found)
            return found

    def all(self) -> "list[Any]":
        """Every module there is here; imports them all."""
        while self._rest:
            self._next()
        return self._found

    def find(self, name: str, p: "Any") -> "Any":
        """The kernel `name` of the first module that has it and takes these parameters."""
        k = 0
        while k < len(self._found) or self._rest:
            module = self._found[k] if k < len(self._found) else self._next()
            k += 1
            kernel = getattr(module, name, None)
            if kernel is None:
                continue
            accepts = getattr(module, "accepts", None)
            if accepts is None or accepts(name, p):
                return kernel
        raise ModelError("no kernel for " + name)


def tier_name(module: "Any") -> str:
    """Name of the tier that a module implements."""
    stem = module.__name__.rpartition(".")[2]
    for name, found in TIERS:
        if found == stem:
            return name
    return str(stem)
