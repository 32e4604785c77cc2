"""Features of a window: golden bytes on every interpreter, and each number by itself."""

import unittest
from array import array
from collections import namedtuple

from edge_agent.errors import ConfigError
from edge_agent.features import Features, isqrt

Spec = namedtuple("Spec", ("kind", "axes", "window", "hop", "offset", "mul", "shift"))


def spec(kind="stats8", axes=2, window=8, hop=4, offset=None, mul=None, shift=4):
    count = 8 * axes if kind == "stats8" else axes
    if offset is None:
        offset = [0] * count
    if mul is None:
        mul = [1 << shift] * count
    return Spec(kind, axes, window, hop, offset, mul, shift)


def noise(n, seed, amplitude=32768):
    """Deterministic int16 values: a 31-bit linear congruential generator."""
    out = array("h")
    for _ in range(n):
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        out.append((seed >> 8) % (2 * amplitude) - amplitude)
    return out


def signed(data):
    return [b - 256 if b > 127 else b for b in data]


class TestStats8(unittest.TestCase):
    def test_each_number(self):
        # axis 0: 0 1 2 3 4 5 6 7; axis 1: 10 everywhere but -30 at sample 2
        samples = array("h", [0, 10, 1, 10, 2, -30, 3, 10, 4, 10, 5, 10, 6, 10, 7, 10])
        got = signed(Features(spec()).apply(samples))
        self.assertEqual(got[0:2], [3, 5])  # mean, rounded down
        # deviations from 3: squares 9 4 1 0 1 4 9 16, each >> 4: only 16 survives -> 16 // 8
        self.assertEqual(got[2], 1)
        # deviations from 5: 5 seven times (25 >> 4 = 1), -35 (1225 >> 4 = 76): 83 * 16 // 8
        self.assertEqual(got[3], 12)
        self.assertEqual(got[4:6], [0, -30])  # minimum
        self.assertEqual(got[6:8], [7, 10])  # maximum
        self.assertEqual(got[8:10], [1, 11])  # 7 // 7; 80 // 7
        # quarter means less the mean: (0, 2, 4) - 3; (10, -10, 10) - 5
        self.assertEqual(got[10:16], [-3, 5, -1, -15, 1, 5])

    def test_golden(self):
        offset = [(i * 97) % 301 - 150 for i in range(48)]
        mul = [(i * 31) % 200 + 3 for i in range(48)]
        features = Features(spec(axes=6, window=128, hop=64, offset=offset, mul=mul, shift=14))
        got = features.apply(noise(768, 1, 20000))
        self.assertEqual(len(got), 48)
        self.assertEqual(got.hex(), GOLDEN)

    def test_extremes_saturate_and_do_not_overflow(self):
        samples = array("h", [-32768, 32767] * 64)
        got = Features(spec(axes=1, window=128, hop=64)).apply(samples)
        # 65535 // 2 below zero rounds down to -1; the rest lies outside int8
        self.assertEqual(signed(got), [-1, 127, -128, 127, 127, 0, 0, 0])

    def test_constant_window(self):
        got = Features(spec(axes=1, window=16, hop=4)).apply(array("h", [-7] * 16))
        self.assertEqual(signed(got), [-7, 0, -7, -7, 0, 0, 0, 0])

    def test_rounding_is_half_up(self):
        features = Features(spec(axes=1, window=4, mul=[1] * 8, shift=1))
        self.assertEqual(signed(features.apply(array("h", [5] * 4)))[0], 3)
        self.assertEqual(signed(features.apply(array("h", [-5] * 4)))[0], -2)


class TestRaw(unittest.TestCase):
    def test_per_axis(self):
        features = Features(spec("raw", 2, 4, 2, [0, 10], [16, 32]))
        got = features.apply(array("h", [1, 10, -2, 11, 300, 0, -300, 100]))
        self.assertEqual(features.length, 8)
        self.assertEqual(signed(got), [1, 0, -2, 2, 127, -20, -128, 127])

    def test_golden(self):
        features = Features(spec("raw", 3, 8, 4, [5, -5, 0], [7, 9, 11], 12))
        self.assertEqual(features.apply(noise(24, 3, 30000)).hex(), GOLDEN_RAW)

    def test_a_row_of_a_table_is_a_window(self):
        features = Features(spec("raw", 30, 1, 1, mul=[1] * 30, shift=1))
        self.assertEqual(features.length, 30)
        self.assertEqual(
            signed(features.apply(array("h", range(30)))), [(i + 1) // 2 for i in range(30)]
        )


class TestRefusals(unittest.TestCase):
    def refused(self, field, **changes):
        names = ("kind", "axes", "window", "hop", "offset", "mul", "shift")
        good = spec(axes=1)
        fields = [changes.get(n, good[i]) for i, n in enumerate(names)]
        with self.assertRaises(ConfigError) as caught:
            Features(Spec(*fields))
        self.assertTrue(field in str(caught.exception), str(caught.exception))

    def test_bad_parameters_are_named(self):
        self.refused("features.kind", kind="fft")
        self.refused("features.axes", axes=0)
        self.refused("features.window", window=10)
        self.refused("features.window", window=1 << 20)
        self.refused("features.window", window=0, kind="raw")
        self.refused("features.axes", axes=17, mul=[1] * 136, offset=[0] * 136)
        self.refused("features.axes", axes=65, kind="raw")
        self.refused("features.shift", shift=0)
        self.refused("features.mul", mul=[1] * 7)
        self.refused("features.offset", offset=["a"] * 8)
        self.refused("features.offset", offset=[1 << 40] * 8)

    def test_wrong_window_length(self):
        with self.assertRaises(ConfigError):
            Features(spec()).apply(array("h", [0] * 15))


class TestRoot(unittest.TestCase):
    def test_isqrt(self):
        for n in list(range(300)) + [1 << 20, (1 << 20) - 1, (1 << 31) - 1, 1 << 31, 1 << 40]:
            r = isqrt(n)
            self.assertTrue(r * r <= n < (r + 1) * (r + 1), n)


# Checked against the numpy formulation by tests/host/test_train.py.
GOLDEN = (
    "0102f9010f077f0e223a4b6180f9d3ad8a807f7f1c42677f7b7f0723314af905"
    "f700faf5080303fe000cf40a040a00fe"
)
GOLDEN_RAW = "17e9d4fd40ef1fe8bcf1efee31cc251b3adfdb1efa0e0302"

if __name__ == "__main__":
    unittest.main()
