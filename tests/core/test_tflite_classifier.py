"""The classifier on whatever interpreter runs this: outputs by name, scores in integers."""

import gc
import unittest

from mpy_port.tflite import Interpreter, ModelError
from mpy_port.tflite.classifier import Classifier
from mpy_port.tflite.outputs import score_table

PATH = (__file__.rpartition("/")[0] or ".") + "/../../models/watch_mlp_int8.tflite"


class Info:
    """An output's quantisation."""

    where = "t"
    scale = 0.0

    def __init__(self, kind, scale_bits, zero_point):
        self.type = kind
        self.scale_bits = scale_bits
        self.zero_point = zero_point


class ShippedModel(unittest.TestCase):
    def test_outputs_are_found_by_name(self):
        model = Classifier(PATH)
        self.assertEqual((model.input_length, model.labels, model.embedding_length), (48, 7, 64))
        row = bytes(range(48))
        net = Interpreter(PATH, tier="python")
        net.set_input(row)
        net.invoke()
        scores, embedding, zero_point = model.run(row)
        self.assertEqual(scores, bytes([v + 128 for v in net.output(0)]))
        self.assertEqual(embedding, bytes(net.output(1)))
        self.assertEqual(zero_point, net.outputs[1].zero_point)

    def test_wrong_length(self):
        self.assertRaises(ModelError, Classifier(PATH).run, bytes(47))

    def test_the_collector_is_left_as_it_was(self):
        if not hasattr(gc, "threshold"):
            return  # CPython
        for before in (-1, 4096, 98304):
            gc.threshold(before)
            Interpreter(PATH)
            self.assertEqual(gc.threshold(), before)
            self.assertRaises(ModelError, Interpreter, b"no model at all")
            self.assertEqual(gc.threshold(), before)
        gc.threshold(-1)


class Scores(unittest.TestCase):
    def test_a_256th_moves_by_128(self):
        table = score_table(Info("int8", 0x3B800000, -128))
        self.assertEqual(table, bytes([v ^ 0x80 for v in range(256)]))
        self.assertEqual(score_table(Info("uint8", 0x3B800000, 0)), bytes(range(256)))

    def test_halves_are_rounded_up_and_one_is_255(self):
        """At 129/128 of a 256th, 64 steps are 64.5."""
        info = Info("uint8", 0x3B810000, 0)
        table = score_table(info)
        self.assertEqual([table[64], table[63], table[255]], [65, 63, 255])

    def test_what_cannot_be_probabilities(self):
        for kind, bits, zero in (
            ("int8", 0x3B800000, 0),  # from -0.5
            ("int8", 0x3C000000, -128),  # to 2
            ("int8", 0x3B000000, -128),  # to 0.5
            ("int8", 0, -128),
            ("int8", 0xBB800000, -128),
            ("int8", 0x4B800000, -128),
            ("int8", 0x7F800000, -128),
            ("int8", 0x00000001, -128),
        ):
            self.assertRaises(ModelError, score_table, Info(kind, bits, zero))


if __name__ == "__main__":
    unittest.main()
