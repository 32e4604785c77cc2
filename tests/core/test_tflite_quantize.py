import unittest
from array import array

from tflite_models import VECTORS

from mpy_port.tflite import quantize as q
from mpy_port.tflite.errors import ModelError
from mpy_port.tflite.kernels import python as kernels


def float_bytes(bits):
    return bits.to_bytes(4, "little")


class Multipliers(unittest.TestCase):
    """Integers only, yet the same as IEEE doubles and floats make them."""

    def test_as_doubles_make_them(self):
        rows = VECTORS["multipliers"]
        for x, w, out, m, shift in rows:
            mul, shifts = array("i", [0]), array("b", [0])
            found = kernels.multipliers(mul, shifts, float_bytes(w), array("i", [x, out]))
            self.assertEqual((found, mul[0], shifts[0]), (-1, m, shift), (x, w, out))
        self.assertGreater(len(rows), 100)

    def test_quotients_as_floats_round_them(self):
        for a, b, rounded in VECTORS["quotients"]:
            found = q.float_quotient_rounded(*(q.parts(a) + q.parts(b)))
            self.assertEqual(found, rounded, (a, b))

    def test_value_just_below_a_power_of_two_rounds_up_to_it(self):
        one = 0x800000
        self.assertEqual(q.multiplier(q.wide(one), -24, one, 0), (1 << 30, 1))
        # (2^24 - 1) / 2^23 = 2 - 2^-23 keeps all its bits in 31.
        self.assertEqual(q.multiplier(q.wide(0xFFFFFF), -24, one, 0), (0x7FFFFF80, 1))
        # (2^48 - 1) / 2^48 does not.
        self.assertEqual(q.multiplier((1 << 48) - 1, -25, one, 0), (1 << 30, 1))

    def test_tiny_multiplier_becomes_zero(self):
        one = 0x800000
        self.assertEqual(q.multiplier(q.wide(one), -24 - 32, one, 0), (1 << 30, -31))
        self.assertEqual(q.multiplier(q.wide(one), -24 - 33, one, 0), (0, 0))

    def test_useless_scales_are_told_apart(self):
        for bits in (0, 1, 0x7FFFFF, 0x7F800000, 0x7FC00000, 0x80000000, 0xBF800000, 0xFFFFFFFF):
            self.assertEqual(q.parts(bits), (0, 0))
            self.assertRaises(ModelError, q.scale_parts, bits, "tensor 1")
        self.assertEqual(q.parts(0x3F800000), (0x800000, -23))

    def test_bad_channel_is_named(self):
        mul, shifts = array("i", [0, 0]), array("b", [0, 0])
        scales = float_bytes(0x3F800000) + float_bytes(0x7FC00000)
        p = array("i", [0x3F800000, 0x3F800000])
        self.assertEqual(kernels.multipliers(mul, shifts, scales, p), 1)
        far = array("i", [0x3F800000 + (40 << 23), 0x3F800000])
        self.assertEqual(kernels.multipliers(mul, shifts, scales, far), 0)


class Rounding(unittest.TestCase):
    def test_right_shift_takes_ties_away_from_zero(self):
        cases = ((5, 1, 3), (-5, 1, -3), (6, 2, 2), (-6, 2, -2), (7, 3, 1), (3, 3, 0), (-3, 3, 0))
        for x, n, expected in cases + ((9, 0, 9), (-9, 0, -9)):
            self.assertEqual(q.shift_right(x, n), expected, (x, n))

    def test_high_multiplication_takes_ties_up(self):
        half = 1 << 30
        self.assertEqual(q.high_mul(3, half), 2)  # 1.5
        self.assertEqual(q.high_mul(-3, half), -1)  # -1.5
        self.assertEqual(q.high_mul(-0x80000000, -0x80000000), 0x7FFFFFFF)

    def test_two_roundings_not_one(self):
        # 1.25 -> high multiplication gives 3 for 2.5, its half is 2 (ties away); once: 1.
        self.assertEqual(q.scaled(5, 1 << 30, -1), 2)
        self.assertEqual(q.scaled(-5, 1 << 30, -1), -1)

    def test_left_shift_and_wrap(self):
        self.assertEqual(q.scaled(3, 1 << 30, 4), 24)
        self.assertEqual(q.wrap(0x80000000), -0x80000000)
        self.assertEqual(q.wrap(-0x80000001), 0x7FFFFFFF)
        self.assertEqual(q.scaled(1 << 31, 1 << 30, 0), -(1 << 30))
        self.assertEqual(q.scaled(1 << 20, 1 << 30, 11), -(1 << 30))


class FixedPoint(unittest.TestCase):
    """Compared with known values; every bit is compared through whole models."""

    def test_exponential(self):
        one = 1 << 31
        for x, expected in ((0, 1.0), (-1, 0.36787944), (-0.125, 0.8824969), (-7.5, 0.00055308)):
            found = q.exp_of_negative(int(x * (1 << 26)), 5)
            self.assertLess(abs(found - int(expected * one)), one // 1000000, x)

    def test_logistic(self):
        one = 1 << 31
        for x, expected in ((0, 0.5), (1, 0.7310586), (-1, 0.26894142), (7.5, 0.99944722)):
            found = q.logistic(int(x * (1 << 27)))
            self.assertLess(abs(found - int(expected * one)), one // 1000000, x)

    def test_reciprocal(self):
        unit = 1 << 19
        for total in (1, 2, 3, 7, 12, 1000):
            inverse, bits = q.reciprocal_of_sum(total * unit)
            found = inverse >> bits
            self.assertLess(abs(found - (1 << 31) // total), 5000, total)

    def test_fused_activations(self):
        tenth = 0x3DCCCCCD  # 0.1
        self.assertEqual(q.activation_range(0, tenth, 5, ""), (-128, 127))
        self.assertEqual(q.activation_range(1, tenth, 5, ""), (5, 127))
        self.assertEqual(q.activation_range(2, tenth, 5, ""), (-5, 15))
        self.assertEqual(q.activation_range(3, tenth, 5, ""), (5, 65))
        self.assertEqual(q.activation_range(3, tenth, 100, ""), (100, 127))
        self.assertRaises(ModelError, q.activation_range, 4, tenth, 5, "")


if __name__ == "__main__":
    unittest.main()
