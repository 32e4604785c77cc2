import unittest

import golden
from golden import unhex
from upy_crypto import HOST, make_crypto

from edge_agent.domain import Domain
from edge_agent.errors import ModelError
from edge_agent.interfaces import ModelOutput
from edge_agent.outcome import Outcome, distil, feedback

CRYPTO = make_crypto()
MODEL = unhex("0123456789abcdef")


class Distil(unittest.TestCase):
    def setUp(self):
        self.vectors = golden.load("domain")
        self.domain = Domain.load(unhex(self.vectors["file"]), CRYPTO, HOST)

    def run_one(self, scores, tags=(), unsure=0):
        return distil(ModelOutput(bytes(scores), bytes(64), 0), self.domain, MODEL, tags, unsure)

    def test_golden(self):
        for vector in self.vectors["distilled"]:
            output = ModelOutput(
                unhex(vector["scores"]), unhex(vector["embedding"]), vector["zero_point"]
            )
            made = distil(output, self.domain, MODEL, vector["tags"], vector["unsure_below"])
            self.assertEqual(made, golden.from_json(vector["outcome"]))

    def test_ties_go_to_the_lowest_label(self):
        self.assertEqual(self.run_one((5, 9, 9, 9)).label, 1)
        self.assertEqual(self.run_one((0, 0)).label, 0)
        self.assertEqual(self.run_one((1, 2, 255)).confidence, 255)

    def test_unsure(self):
        self.assertEqual(self.run_one((100,), (), 100).tags, ())
        self.assertEqual(self.run_one((100,), (), 101).tags, (2,))
        self.assertEqual(self.run_one((100,), (2,), 101).tags, (2,))
        self.assertEqual(self.run_one((100,), (3, 1, 1, 0), 101).tags, (0, 1, 2, 3))

    def test_unsure_wins_a_place(self):
        known = self.domain
        tags = ["a", "b", "c", "d", "unsure"]
        wide = Domain(CRYPTO, "n", known.owner, 1, known.space, known.labels, tags, [], [])
        made = distil(ModelOutput(b"\x05", bytes(64), 0), wide, None, (0, 1, 2, 3), 6)
        self.assertEqual(made.tags, (0, 1, 2, 4))

    def test_a_domain_without_the_tag(self):
        known = self.domain
        bare = Domain(CRYPTO, "n", known.owner, 1, known.space, known.labels, ["a"], [], [])
        made = distil(ModelOutput(b"\x05", bytes(64), 0), bare, None, (), 6)
        self.assertEqual(made.tags, ())
        self.assertIsNone(made.model)

    def test_output_of_another_model(self):
        for scores, embedding in ((bytes(8), bytes(64)), (b"", bytes(64)), (bytes(7), bytes(63))):
            with self.assertRaises(ModelError):
                distil(ModelOutput(scores, embedding, 0), self.domain, MODEL)
        for tags in ((4,), (-1,)):
            with self.assertRaises(ModelError):
                self.run_one((1,), tags)


class Values(unittest.TestCase):
    def test_equality_and_repr(self):
        a = Outcome(bytes(64), 1, 2, [3])
        self.assertEqual(a, Outcome(bytes(64), 1, 2, (3,)))
        self.assertNotEqual(a, Outcome(bytes(64), 1, 3, (3,)))
        self.assertFalse(a == 5)
        self.assertIn("label 1", repr(a))

    def test_feedback(self):
        made = feedback(b"x" * 16, 4, 1)
        self.assertEqual((made.about, made.label, made.result), (b"x" * 16, 4, 1))
        self.assertIsNone(made.vector)
        self.assertIsNone(made.confidence)
        self.assertIn("feedback", repr(made))


if __name__ == "__main__":
    unittest.main()
