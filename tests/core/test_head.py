"""Heads: the same integers everywhere, and rows that say what they are."""

import unittest

import golden

from edge_agent import cbor
from edge_agent.errors import FrameError
from edge_agent.head import Head, Row, decode_row, encode_row, softmax

MAIL = golden.load("mail")
MODEL = b"modelmod"


def row(**change):
    values = {
        "version": 3, "model_id": MODEL, "index": 1, "count": 4, "weights": bytes(range(64)),
        "bias": -70000, "multiplier": 1 << 20, "shift": 31,
    }  # fmt: skip
    values.update(change)
    return Row(
        values["version"], values["model_id"], values["index"], values["count"],
        values["weights"], values["bias"], values["multiplier"], values["shift"],
    )  # fmt: skip


def rows(version=3, count=4, model_id=MODEL):
    return [row(version=version, count=count, index=i, model_id=model_id) for i in range(count)]


class Codec(unittest.TestCase):
    def test_round_trip(self):
        for made in (row(), row(model_id=b""), row(bias=-(1 << 31), multiplier=0, shift=0)):
            self.assertEqual(decode_row(encode_row(made)), made)

    def test_out_of_range(self):
        for change in (
            {"version": -1}, {"version": 65536}, {"version": True}, {"model_id": bytes(7)},
            {"model_id": "modelmod"}, {"index": 4}, {"index": -1}, {"count": 0, "index": 0},
            {"count": 256}, {"weights": bytes(63)}, {"weights": [0] * 64}, {"bias": 1 << 31},
            {"bias": -(1 << 31) - 1}, {"multiplier": -1}, {"multiplier": 1 << 31}, {"shift": 63},
            {"shift": -1}, {"shift": None},
        ):  # fmt: skip
            with self.assertRaises(FrameError):
                encode_row(row(**change))

    def test_wrong_bodies(self):
        good = encode_row(row())
        for body in (b"", b"\x80", b"\xa0", b"\x00", good + b"\x00", cbor.encode(list(row()[:7]))):
            with self.assertRaises(FrameError):
                decode_row(body)
        for end in range(len(good)):
            with self.assertRaises(FrameError):
                decode_row(good[:end])


class Arithmetic(unittest.TestCase):
    def test_golden(self):
        for case in MAIL["heads"]:
            made = [decode_row(golden.unhex(body)) for body in case["rows"]]
            made.reverse()  # any order will do
            head = Head(case["version"], made[0].model_id, made)
            for said in case["said"]:
                vector = golden.unhex(said["vector"])
                self.assertEqual([str(n) for n in head.logits(vector)], said["logits"])
                self.assertEqual(head.scores(vector).hex(), said["scores"])

    def test_rounding(self):
        """Half a step goes up, for negative numbers too."""
        for acc, said in ((5, 3), (-5, -2), (7, 4), (-7, -3), (6, 3), (-6, -3)):
            head = Head(0, b"", [row(version=0, model_id=b"", index=0, count=1, weights=bytes(64),
                                     bias=acc, multiplier=1, shift=1)])  # fmt: skip
            self.assertEqual(head.logits(bytes(64)), [said])

    def test_softmax(self):
        self.assertEqual(softmax([0]), b"\xff")
        self.assertEqual(softmax([7, 7]), b"\x80\x80")
        self.assertEqual(softmax([1 << 40, -(1 << 40)]), b"\xff\x00")
        for n in range(1, 65):
            scores = softmax([(i * i * 37) % 900 - 400 for i in range(n)])
            self.assertTrue(abs(sum(scores) - 255) <= n)

    def test_higher_never_scores_less(self):
        last = 0
        for logit in range(-3000, 3000, 7):
            score = softmax([logit, 0, 100])[0]
            self.assertTrue(score >= last)
            last = score
        self.assertEqual(last, 255)


class Sets(unittest.TestCase):
    def test_only_whole_sets(self):
        self.assertEqual(len(Head(3, MODEL, rows()).rows), 4)
        for version, model_id, wrong in (
            (3, MODEL, rows()[:3]),
            (3, MODEL, rows()[:3] + [row(index=2)]),
            (4, MODEL, rows()),
            (3, b"", rows()),
            (3, MODEL, rows()[:3] + [row(index=3, version=2)]),
            (3, MODEL, []),
        ):
            with self.assertRaises(ValueError):
                Head(version, model_id, wrong)

    def test_fits(self):
        head = Head(3, MODEL, rows())
        self.assertTrue(head.fits(MODEL, 4))
        self.assertTrue(head.fits(MODEL, 9))
        self.assertFalse(head.fits(MODEL, 3))
        self.assertFalse(head.fits(b"anothers", 4))
        self.assertFalse(head.fits(None, 4))
        for model in (MODEL, None):
            self.assertTrue(Head(3, b"", rows(model_id=b"")).fits(model, 4))

    def test_a_vector_has_64_numbers(self):
        with self.assertRaises(ValueError):
            Head(3, MODEL, rows()).scores(bytes(63))


if __name__ == "__main__":
    unittest.main()
