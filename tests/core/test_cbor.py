import unittest

import golden
from golden import unhex

from edge_agent import cbor
from edge_agent.errors import CborError


def plain(value):
    """Golden values hold tuples where the decoder gives lists."""
    if isinstance(value, cbor.Tag):
        return cbor.Tag(value.number, plain(value.value))
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def reason(data, *limits):
    try:
        cbor.decode(data, *limits)
    except CborError as error:
        return error.reason
    return None


class Standard(unittest.TestCase):
    def setUp(self):
        self.vectors = golden.load("standards")

    def test_examples_inside_the_subset(self):
        for text, value in self.vectors["cbor_equal"]["vectors"]:
            value = plain(golden.from_json(value))
            self.assertEqual(cbor.decode(unhex(text)), value, text)
            self.assertEqual(cbor.encode(value), unhex(text), text)

    def test_tags(self):
        for text, number, value in self.vectors["cbor_tags"]["vectors"]:
            tag = cbor.Tag(number, golden.from_json(value))
            self.assertEqual(cbor.decode(unhex(text)), tag, text)
            self.assertEqual(cbor.encode(tag), unhex(text), text)

    def test_examples_outside_the_subset(self):
        for text, expected in self.vectors["cbor_refused"]["vectors"]:
            self.assertEqual(reason(unhex(text)), expected, text)

    def test_not_well_formed(self):
        for text in self.vectors["cbor_not_well_formed"]["vectors"]:
            self.assertIsNotNone(reason(unhex(text)), text)


class Encode(unittest.TestCase):
    def test_every_head_length(self):
        for n in (0, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63, 2**64 - 1):
            for value in (n, -1 - n):
                self.assertEqual(cbor.decode(cbor.encode(value)), value)
        for size in (0, 23, 24, 255, 256, 65535, 65536):
            self.assertEqual(cbor.decode(cbor.encode(bytes(size))), bytes(size))
            self.assertEqual(cbor.decode(cbor.encode("x" * size)), "x" * size)

    def test_head_alone(self):
        self.assertEqual(cbor.head(2, 300), b"\x59\x01\x2c")

    def test_keys_sort_by_their_bytes(self):
        value = {"b": 1, "aa": 2, 300: 3, 24: 4, 0: 5, -1: 6, "a": 7}
        self.assertEqual(cbor.encode(value).hex(), "a7000518180419012c03200661610761620162616102")

    def test_buffers_count_as_bytes(self):
        for made in (bytearray(b"abc"), memoryview(b"abc")):
            self.assertEqual(cbor.encode(made), b"\x43abc")
            self.assertEqual(cbor.decode(memoryview(bytearray(cbor.encode(made)))), b"abc")

    def test_tuples_are_arrays_and_named_tags_are_not(self):
        self.assertEqual(cbor.encode((1, 2)), b"\x82\x01\x02")
        self.assertEqual(cbor.encode(cbor.Tag(1, 2)), b"\xc1\x02")

    def test_what_has_no_encoding(self):
        deep = []
        for _ in range(40):
            deep = [deep]
        for value, expected in (
            (1.5, "type"),
            (object(), "type"),
            (2**64, "range"),
            (-(2**64) - 1, "range"),
            ({b"x": 1}, "key"),
            ({True: 1}, "key"),
            ({None: 1}, "key"),
            (deep, "depth"),
        ):
            try:
                cbor.encode(value)
                self.fail("%r was encoded" % (value,))
            except CborError as error:
                self.assertEqual(error.reason, expected)


class Refuse(unittest.TestCase):
    def check(self, cases):
        for text, expected in cases:
            self.assertEqual(reason(unhex(text.replace(" ", ""))), expected, text)

    def test_longer_than_needed(self):
        self.check(
            [
                (text, "not-shortest")
                for text in [
                    "1800",
                    "1817",
                    "190000",
                    "1900ff",
                    "1a00000000",
                    "1a0000ffff",
                    "1b0000000000000000",
                    "1b00000000ffffffff",
                    "3817",
                    "580100",
                    "5900ff",
                    "780161",
                    "980101",
                    "b80101",
                    "d80100",
                ]
            ]
        )

    def test_map_keys(self):
        self.check(
            (
                ("a2 0101 0102", "key-order"),
                ("a2 0201 0102", "key-order"),
                ("a2 181801 0102", "key-order"),
                ("a2 181801 181802", "key-order"),
                ("a2 616101 616102", "key-order"),
                ("a2 616201 616102", "key-order"),
                ("a2 2001 0102", "key-order"),
                ("a2 616101 0102", "key-order"),
                ("a1 4101 01", "key"),
                ("a1 f5 01", "key"),
                ("a1 f6 01", "key"),
                ("a1 80 01", "key"),
                ("a1 c101 01", "key"),
            )
        )
        # In order: one-byte keys, longer ones, negative ones, text.
        good = {0: 1, 23: 2, 24: 3, 255: 4, 256: 5, -1: 6, -25: 7, "a": 8, "b": 9, "aa": 10}
        self.assertEqual(cbor.decode(cbor.encode(good)), good)

    def test_text_must_be_utf8(self):
        self.check(
            (
                ("61 80", "utf8"),
                ("61 c3", "utf8"),
                ("62 c0af", "utf8"),
                ("62 c328", "utf8"),
                ("63 e08080", "utf8"),
                ("63 eda080", "utf8"),
                ("63 e28228", "utf8"),
                ("64 f0808080", "utf8"),
                ("64 f4908080", "utf8"),
                ("65 f888808080", "utf8"),
            )
        )

    def test_limits(self):
        nested = b"\x81" * 8 + b"\x00"
        self.assertIsNone(reason(nested, 8))
        self.assertEqual(reason(nested, 7), "depth")
        self.assertEqual(reason(b"\xc1" * 500 + b"\x00"), "depth")
        self.assertIsNone(reason(cbor.encode([0] * 40), 8, 40))
        self.assertEqual(reason(cbor.encode([0] * 41), 8, 40), "items")
        self.assertEqual(reason(cbor.encode([[0] * 20, [0] * 20]), 8, 40), "items")
        self.assertEqual(reason(cbor.encode(dict.fromkeys(range(21), 0)), 8, 40), "items")

    def test_lengths_beyond_the_data_allocate_nothing(self):
        self.check(
            (
                ("9b7fffffffffffffff", "truncated"),
                ("bb7fffffffffffffff", "truncated"),
                ("5b7fffffffffffffff00", "truncated"),
                ("9affffffff00", "truncated"),
            )
        )

    def test_trailing_bytes(self):
        self.check((("0000", "trailing"), ("f6f6", "trailing"), ("", "truncated")))

    def test_every_truncation(self):
        data = cbor.encode(
            {1: [1, 300, 70000, 2**40, -5], "k": [b"x" * 30, "text", None], 3: {1: True}}
        )
        for end in range(len(data)):
            self.assertIsNotNone(reason(data[:end]), end)

    def test_any_bytes_give_a_value_or_a_cbor_error(self):
        # Every start of one and two bytes, with a tail that could be anything's content.
        tail = bytes(range(24))
        for first in range(256):
            for second in (0, 1, 23, 24, 31, 64, 95, 128, 160, 192, 224, 251, 255):
                data = bytes((first, second)) + tail
                if reason(data) is None:
                    self.assertEqual(cbor.encode(cbor.decode(data)), data)


if __name__ == "__main__":
    unittest.main()
