"""Random calls of one kernel tier against plain Python, on whichever interpreter runs this.

    micropython tests/zoo/run_calls.py TIER [COUNT [SEED]]

Arguments keep the kernels' contract and otherwise go to its edges: groups, dilation,
batches, channel multipliers, weights at odd addresses, biases and shifts that make sums
wrap. Prints the number of calls; each wrong one with its parameters.
"""

import sys
from array import array

sys.path.insert(0, (__file__.rpartition("/")[0] or ".") + "/../..")

from mpy_port.tflite.kernels import Tiers, python


class Dice:
    """The same numbers on every machine, in 30-bit steps."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state * 69069 + 12345) & 0x3FFFFFFF
        return (self.state >> 8) % n

    def between(self, low, high):
        return low + self.below(high - low + 1)

    def one(self, *choices):
        return choices[self.below(len(choices))]

    def int8(self, n):
        return memoryview(array("b", [self.between(-128, 127) for _ in range(n)]))

    def weights(self, n):
        """Bytes of a model, at any address."""
        before = self.below(4)
        return memoryview(bytes([self.below(256) for _ in range(before + n)]))[before:]

    def word(self):
        return (self.below(1 << 16) << 16 | self.below(1 << 16)) - 0x80000000

    def multiplier(self, strange):
        if strange and not self.below(4):
            return self.one((0, 0), (0x7FFFFFFF, 30), (1 << 30, -31), (1 << 30, 0))
        return (1 << 30) + (self.word() >> 2) + (1 << 29), self.between(-13, -5)

    def range(self):
        return self.one((-128, 127), (-128, 127), (3, 60), (-128, -128))


def window(d, kernel, stride, dilation, size):
    """(output size, padding) of an axis, SAME or VALID."""
    reach = (kernel - 1) * dilation + 1
    if d.below(2) or reach > size:
        out = (size + stride - 1) // stride
        total = (out - 1) * stride + reach - size
        return out, max(0, total) // 2
    return (size - reach) // stride + 1, 0


def sizes(d, most):
    kh, kw, sh, sw = d.between(1, 3), d.between(1, 5), d.between(1, 3), d.between(1, 3)
    dh, dw = d.one(1, 1, 2), d.one(1, 1, 3)
    ih, iw = d.between(1, most), d.between(1, most)
    (oh, ph), (ow, pw) = window(d, kh, sh, dh, ih), window(d, kw, sw, dw, iw)
    return ih, iw, oh, ow, kh, kw, sh, sw, dh, dw, ph, pw


def weighted(d, ic, oc, fc, count, where):
    """Arguments of a layer with weights. where: IH, IW, OH, OW, KH to PW."""
    ih, iw, oh, ow, kh, kw, sh, sw, dh, dw, ph, pw = where
    n, per, strange = d.one(1, 1, 2), d.below(2), not d.below(5)
    lo, hi = d.range()
    p = (n, ih, iw, ic, oh, ow, oc, kh, kw, sh, sw, dh, dw, ph, pw)
    p += (d.between(-128, 127), d.between(-128, 127), lo, hi, per, fc)
    scales = [d.multiplier(strange) for _ in range(oc if per else 1)]
    bias = [d.word() if strange else d.between(-9999, 9999) for _ in range(oc)]
    return n * oh * ow * oc, (
        d.int8(n * ih * iw * ic),
        d.weights(count * kh * kw),
        array("i", bias),
        array("i", [m for m, _ in scales]),
        array("b", [s for _, s in scales]),
        array("i", p),
    )


def conv_2d(d):
    fc, groups, share = d.between(1, 6), d.one(1, 1, 2, 3), d.between(1, 6)
    where = sizes(d, 6)
    if not d.below(4):
        where = where[:2] * 2 + (1, 1, 1, 1, 1, 1, 0, 0)
    return weighted(d, fc * groups, share * groups, fc, fc * share * groups, where)


def depthwise_conv_2d(d):
    ic, fc = d.between(1, 9), d.one(1, 1, 2, 3, 4, 8)
    return weighted(d, ic, ic * fc, fc, ic * fc, sizes(d, 6))


def fully_connected(d):
    ic, oc, rows = d.between(1, 40), d.between(1, 9), d.one(1, 1, 3)
    n, rest = weighted(d, ic, oc, ic, ic * oc, (1, rows, 1, rows) + (1,) * 6 + (0, 0))
    p = rest[-1]
    return n // p[0], (rest[0][: rows * ic],) + rest[1:-1] + (array("i", [1] + list(p[1:])),)


def pool(d):
    c, n, (lo, hi) = d.between(1, 6), d.one(1, 2), d.range()
    ih, iw, oh, ow, kh, kw, sh, sw, _, _, ph, pw = sizes(d, 7)
    (oh, ph), (ow, pw) = window(d, kh, sh, 1, ih), window(d, kw, sw, 1, iw)
    p = array("i", (n, ih, iw, c, oh, ow, c, kh, kw, sh, sw, 1, 1, ph, pw, 0, 0, lo, hi, 0, 1))
    return n * oh * ow * c, (d.int8(n * ih * iw * c), p)


def pair(d, words):
    dims = [d.between(1, 4) for _ in range(4)]
    strides, counts = [], []
    for _ in range(2):
        step, found = 1, []
        for k in (3, 2, 1, 0):
            wide = d.below(3)
            found.insert(0, step if wide else 0)
            step *= dims[k] if wide else 1
        strides += found
        counts.append(step)
    (lo, hi), zeros = d.range(), [d.between(-128, 127) for _ in range(3)]
    tail = []
    for _ in range(words):
        m, s = d.multiplier(False)
        tail += [m, s + 5 if words == 3 else s]
    p = array("i", dims + strides + zeros + [lo, hi] + tail)
    return dims[0] * dims[1] * dims[2] * dims[3], (d.int8(counts[0]), d.int8(counts[1]), p)


def mean(d):
    k = [d.between(1, 4) for _ in range(5)]
    m, s = d.multiplier(False)
    p = array("i", k + [d.between(-128, 127), d.between(-128, 127), m, s + 3])
    return k[0] * k[2] * k[4], (d.int8(k[0] * k[1] * k[2] * k[3] * k[4]), p)


def softmax(d):
    rows, depth, s = d.between(1, 3), d.between(1, 30), d.between(1, 31)
    m, _ = d.multiplier(False)
    p = array("i", (rows, depth, m, s, (31 << 26) >> s))
    return rows * depth, (d.int8(rows * depth), p)


def lookup(d):
    n = d.between(1, 50)
    return n, (d.int8(n), array("b", d.int8(256)))


def pad(d):
    dims = [d.between(1, 3) for _ in range(4)]
    around = [d.below(3) for _ in range(8)]
    count = 1
    for k in range(4):
        count *= dims[k] + around[k] + around[4 + k]
    x = d.int8(dims[0] * dims[1] * dims[2] * dims[3])
    return count, (x, array("i", dims + around + [d.between(-128, 127)]))


MAKERS = {
    "add": lambda d: pair(d, 3),
    "average_pool_2d": pool,
    "conv_2d": conv_2d,
    "depthwise_conv_2d": depthwise_conv_2d,
    "fully_connected": fully_connected,
    "lookup": lookup,
    "max_pool_2d": pool,
    "mean": mean,
    "mul": lambda d: pair(d, 1),
    "pad": pad,
    "softmax": softmax,
}


def multipliers(d, tier):
    """None, or what differs: multipliers and shifts of random scales, good and bad."""
    count = d.between(1, 6)

    def bits():
        exponent = d.between(67, 187) if d.below(9) else d.below(256)
        mantissa = d.one(0, 0x7FFFFF, d.word() & 0x7FFFFF, d.word() & 0x7FFFFF)
        return exponent << 23 | mantissa

    # Near 1, so that most products are good.
    scales = b""
    for _ in range(count):
        value = bits() if not d.below(6) else d.between(115, 130) << 23 | d.word() & 0x7FFFFF
        scales += bytes([value >> (8 * k) & 255 for k in range(4)])
    p = array("i", [d.between(110, 140) << 23 | d.word() & 0x7FFFFF for _ in range(2)])
    found = []
    for module in (python, tier):
        mul, shift = array("i", bytes(4 * count)), array("b", bytes(count))
        bad = module.multipliers(mul, shift, memoryview(b"x" + scales)[1:], p)
        done = count if bad < 0 else bad
        found.append((bad, list(mul[:done]), list(shift[:done])))
    return None if found[0] == found[1] else (list(p), scales, found)


def main(name, count=300, seed=1):
    tier = Tiers(name).first
    d = Dice(int(seed))
    done = wrong = 0
    for kernel in sorted(MAKERS):
        if not hasattr(tier, kernel):
            continue
        for _ in range(int(count)):
            size, args = MAKERS[kernel](d)
            outs = []
            for module in (python, tier):
                out = memoryview(array("b", [77] * (size + 8)))
                getattr(module, kernel)(out[4 : 4 + size], *args)
                outs.append(bytes(out))
            done += 1
            if outs[0] != outs[1]:
                wrong += 1
                print(kernel, list(args[-1]), outs)
    if hasattr(tier, "multipliers"):
        for _ in range(int(count)):
            done += 1
            different = multipliers(d, tier)
            if different:
                wrong += 1
                print("multipliers", different)
    print("%d calls, %d wrong" % (done, wrong))


if __name__ == "__main__":
    main(*sys.argv[1:])
