import hashlib
import unittest

from upy_crypto import make_crypto

from edge_agent.fingerprint import MAX_WIDTH, Projection, fingerprint, signed

CRYPTO = make_crypto()
ID = b"domain-0"


def numbers(width, salt):
    out = b""
    while len(out) < width:
        out += hashlib.sha256(b"%d %d" % (len(out), salt)).digest()
    return signed(out[:width])


def slow(purpose, rows, values):
    """The definition, one sign at a time."""
    sums = []
    for row in range(rows):
        total = 0
        for column, value in enumerate(values):
            seed = ID + purpose + row.to_bytes(2, "big") + (column // 256).to_bytes(2, "big")
            digest = hashlib.sha256(seed).digest()
            bit = digest[column % 256 // 8] >> (7 - column % 8) & 1
            total += value if bit else -value
        sums.append(total)
    return sums


class Sums(unittest.TestCase):
    def test_quick_and_lean_follow_the_definition(self):
        for rows, width in ((128, 64), (8, 1), (8, 7), (16, 48), (8, 127), (8, 128), (8, 300)):
            values = numbers(width, rows)
            expected = slow(b"fp", rows, values)
            packed = 0
            for total in expected:
                packed = packed << 1 | (total >= 0)
            for lean in (False, True):
                made = Projection(CRYPTO, ID, b"fp", rows, width, lean)
                self.assertEqual(made.apply(values), expected, (rows, width, lean))
                self.assertEqual(made.signs(values), packed.to_bytes(rows // 8, "big"))

    def test_extremes_do_not_run_into_the_next_lane(self):
        for width in (127, 128):
            for lean in (False, True):
                made = Projection(CRYPTO, ID, b"proj", 8, width, lean)
                ones = made.apply([1] * width)
                for value in (-256, -255, 255, 0):
                    self.assertEqual(made.apply([value] * width), [value * one for one in ones])
                # Along the first row, so that one lane holds the largest sum there is.
                along = [1 if made.apply(unit(width, i))[0] > 0 else -1 for i in range(width)]
                self.assertEqual(made.apply([255 * sign for sign in along])[0], 255 * width)
                self.assertEqual(made.apply([-255 * sign for sign in along])[0], -255 * width)

    def test_purposes_and_domains_differ(self):
        values = numbers(64, 1)
        made = [
            Projection(CRYPTO, domain, purpose, 128, 64).signs(values)
            for domain in (ID, b"domain-1")
            for purpose in (b"fp", b"proj")
        ]
        self.assertEqual(len(set(made)), 4)

    def test_wrong_widths(self):
        for width in (0, MAX_WIDTH + 1):
            with self.assertRaises(ValueError):
                Projection(CRYPTO, ID, b"fp", 8, width)
        for lean in (False, True):
            made = Projection(CRYPTO, ID, b"fp", 8, 8, lean)
            self.assertRaises(ValueError, made.apply, [0] * 7)
            self.assertRaises(ValueError, made.signs, [0] * 9)


class Fingerprint(unittest.TestCase):
    def test_zero_gives_all_ones(self):
        for lean in (False, True):
            made = Projection(CRYPTO, ID, b"fp", 128, 64, lean)
            self.assertEqual(fingerprint(made, bytes(64)), b"\xff" * 16)
            self.assertRaises(ValueError, fingerprint, made, bytes(63))

    def test_near_vectors_have_near_fingerprints(self):
        made = Projection(CRYPTO, ID, b"fp", 128, 64)
        base = numbers(64, 3)
        near = [max(-127, min(127, value + (i % 5) - 2)) for i, value in enumerate(base)]
        far = numbers(64, 4)
        self.assertLess(distance(made, base, near), 12)
        self.assertGreater(distance(made, base, far), 40)


def unit(width, i):
    values = [0] * width
    values[i] = 1
    return values


def distance(made, a, b):
    x = int.from_bytes(made.signs(a), "big") ^ int.from_bytes(made.signs(b), "big")
    count = 0
    while x:
        count += x & 1
        x >>= 1
    return count


if __name__ == "__main__":
    unittest.main()
