import unittest

from tflite_models import MODELS, load

from mpy_port.tflite import Interpreter, ModelError
from mpy_port.tflite.flatbuffer import Reader


def outcome(data):
    """ "ran" or "refused"; any other exception comes through."""
    try:
        model = Interpreter(data, tier="python", arena_limit=1 << 16)
    except ModelError as error:
        if not str(error):
            raise ValueError("no message")
        return "refused"
    total = 0
    for _, _, args in model.steps():
        total += len(args[0]) * (len(args[2]) if len(args) > 4 else 1)
    if total < 20000:
        model.invoke()
    return "ran"


class Reading(unittest.TestCase):
    def test_every_position_is_checked(self):
        r = Reader(b"\x01\x02\x03\x04\xff\xff\xff\xff")
        self.assertEqual((r.u8(7), r.u16(6), r.u32(4)), (255, 65535, 0xFFFFFFFF))
        self.assertEqual((r.i32(4), r.u32(0), r.i64(0)), (-1, 0x04030201, 0x04030201 - (1 << 32)))
        for read, at in (
            (r.u8, 8), (r.u8, -1), (r.u16, 7), (r.u16, -2), (r.u32, 5), (r.u32, -4),
            (r.u32, 1 << 40), (r.i32, 6), (r.i64, 1), (r.follow, 0), (r.follow, 4),
        ):  # fmt: skip
            self.assertRaises(ModelError, read, at)

    def test_vector_must_fit_the_file(self):
        # A table at 12 whose vtable at 4 gives field 0 at offset 4; the vector is at 20.
        data = b"\0\0\0\0" + b"\x06\0\x08\0\x04\0\0\0" + b"\x08\0\0\0" + b"\x04\0\0\0"
        for count, good in ((2, True), (3, False), (0x40000000, False), (0xFFFFFFFF, False)):
            r = Reader(data + count.to_bytes(4, "little") + bytes(8))
            if good:
                self.assertEqual(r.vector(12, 0, 4), (24, 2))
                self.assertEqual(r.vector(12, 1, 4), (0, 0))
            else:
                self.assertRaises(ModelError, r.vector, 12, 0, 4)

    def test_text_is_safe_to_print(self):
        data = b"\0\0\0\0" + b"\x06\0\x08\0\x04\0\0\0" + b"\x08\0\0\0" + b"\x04\0\0\0"
        r = Reader(data + b"\x04\0\0\0a\n\xffb")
        self.assertEqual(r.text(12, 0), "a??b")


class Damaged(unittest.TestCase):
    def test_every_truncation_is_refused_or_harmless(self):
        model = load("softmax_02")[0]
        for length in range(len(model)):
            outcome(model[:length])
        self.assertEqual(outcome(model), "ran")

    def test_every_byte_changed(self):
        model = load("network_two_inputs")[0]
        counts = {"ran": 0, "refused": 0}
        for at in range(0, len(model), 3):
            changed = model[:at] + bytes([model[at] ^ (1 << at % 8)]) + model[at + 1 :]
            counts[outcome(changed)] += 1
        self.assertGreater(min(counts["ran"], counts["refused"]), 50)

    def test_random_words(self):
        state, refused, model = 1, 0, b""
        numbers = (0, 1, 4, 255, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFC)
        for k in range(600):
            state = (state * 1103515245 + 12345) & 0x3FFFFFFF
            if k % 30 == 0:
                model = load(MODELS[k // 30 % len(MODELS)][0])[0]
            at = (state >> 8) % (len(model) // 4) * 4
            word = numbers[k % len(numbers)]
            data = model[:at] + word.to_bytes(4, "little") + model[at + 4 :]
            refused += outcome(data) == "refused"
        self.assertGreater(refused, 100)


if __name__ == "__main__":
    unittest.main()
