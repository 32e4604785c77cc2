import unittest

from tflite_models import MODELS, Editor, load, message, run_all

from mpy_port.tflite import Interpreter, ModelError, kernels


class Golden(unittest.TestCase):
    """The bytes of TensorFlow Lite Micro, in plain Python and in the best tier here."""

    def test_plain_python(self):
        for name, _, _, _ in MODELS:
            model, feed, out = load(name)
            self.assertEqual(run_all(Interpreter(model, tier="python"), feed), out, name)

    def test_best_tier(self):
        for name, _, _, _ in MODELS:
            model, feed, out = load(name)
            self.assertEqual(run_all(Interpreter(model), feed), out, name)

    def test_every_operator_is_there(self):
        used = set()
        for name, _, _, _ in MODELS:
            for step, _, _ in Interpreter(load(name)[0]).steps():
                used.add(step)
        self.assertEqual(len(used), 14)

    def test_any_kind_of_memory(self):
        model, feed, out = load("network_two_inputs")
        for view in (bytearray(model), memoryview(model)):
            self.assertEqual(run_all(Interpreter(view), feed), out)

    def test_model_at_an_odd_address(self):
        model, feed, out = load("network_menagerie")
        for shift in (1, 2, 3):
            view = memoryview(bytes(shift) + model)[shift:]
            self.assertEqual(run_all(Interpreter(view, tier="python"), feed), out, shift)

    def test_results_do_not_depend_on_what_ran_before(self):
        model, feed, _ = load("network_menagerie")
        loaded = Interpreter(model)
        self.assertEqual(run_all(loaded, feed), run_all(loaded, feed))


class Interface(unittest.TestCase):
    def test_inputs_and_outputs_are_described(self):
        model = Interpreter(load("network_two_inputs")[0])
        self.assertEqual([i.shape for i in model.inputs], [(1, 12, 12, 1), (1, 5)])
        self.assertEqual([i.size for i in model.inputs], [144, 5])
        self.assertEqual(model.outputs[0].shape, (1, 3))
        self.assertEqual(model.outputs[0].type, "int8")
        self.assertEqual(model.outputs[0].scale, 1 / 256)
        self.assertEqual(model.outputs[0].zero_point, -128)
        ends = Interpreter(load("network_float_ends")[0])
        self.assertEqual((ends.inputs[0].type, ends.outputs[0].type), ("float32", "float32"))

    def test_run_is_set_invoke_and_copy(self):
        model, feed, out = load("network_menagerie")
        loaded = Interpreter(model)
        size = loaded.inputs[0].size
        self.assertEqual(loaded.run(feed[:size]), out[: loaded.outputs[0].size])

    def test_input_view_holds_signed_values(self):
        model, feed, _ = load("relu_01")
        loaded = Interpreter(model)
        view = loaded.input()
        for k in range(len(view)):
            view[k] = feed[k] - 256 if feed[k] > 127 else feed[k]
        loaded.invoke()
        expected = bytes(loaded.output())
        self.assertEqual(loaded.run(feed[: len(view)]), expected)
        self.assertEqual(min(loaded.output()) >= -128, True)

    def test_steps_can_be_observed(self):
        loaded = Interpreter(load("network_menagerie")[0])
        seen = []
        loaded.invoke(lambda k, name: seen.append((k, name)))
        self.assertEqual([k for k, _ in seen], list(range(len(seen))))
        self.assertEqual([n for _, n in seen], [n for n, _, _ in loaded.steps()])
        self.assertEqual(seen[0][1], "quantize")

    def test_tier_is_chosen_by_name(self):
        model = load("add_03")[0]
        self.assertEqual(Interpreter(model, tier="python").tier, "python")
        self.assertIn(Interpreter(model).tier, [name for name, _ in kernels.TIERS])
        self.assertIn("no kernel tier", message(model, tier="abacus"))

    def test_weights_are_not_copied(self):
        data = bytearray(load("conv_no_bias")[0])
        loaded = Interpreter(data, tier="python")
        weights = loaded.steps()[0][2][2]
        before = bytes(weights)
        at = bytes(data).find(before)
        data[at] ^= 1
        self.assertNotEqual(bytes(weights), before)


class BadInput(unittest.TestCase):
    def test_wrong_input_size_names_the_tensor(self):
        loaded = Interpreter(load("network_float_ends")[0])
        for size in (0, 79, 81, 20):
            try:
                loaded.set_input(bytes(size))
                self.fail("accepted")
            except ModelError as error:
                self.assertIn("tensor 0 (input)", str(error))
                self.assertIn("80 needed", str(error))

    def test_unknown_operator_is_named_before_anything_is_allocated(self):
        edit = Editor(load("softmax_02")[0])
        for code, name in ((28, "TANH"), (74, "SUM"), (96, "RANGE"), (126, "BATCH_MATMUL")):
            changed = edit.patch(edit.reader.field(edit.code(0), 0), code, 1)
            at = edit.reader.field(edit.code(0), 3)
            if at:
                changed = Editor(changed).patch(at, code)
            self.assertIn("unsupported operators: " + name, message(changed, arena_limit=0))

    def test_arena_limit(self):
        model = load("network_menagerie")[0]
        need = Interpreter(model).arena_bytes
        self.assertIn("needs %d bytes, the limit is %d" % (need, need - 1),
                      message(model, arena_limit=need - 1))  # fmt: skip
        self.assertEqual(Interpreter(model, arena_limit=need).arena_bytes, need)

    def test_missing_file(self):
        self.assertIn("no/such/model.tflite", message("no/such/model.tflite"))

    def test_not_a_model(self):
        for data in (b"", b"TFL3", bytes(64), b"\x1c\0\0\0TFL2" + bytes(60)):
            self.assertTrue(message(data))

    def test_schema_version(self):
        edit = Editor(load("mean_02")[0])
        self.assertIn("schema version 4", message(edit.patch(edit.root(0), 4)))

    def test_dynamic_shape_names_the_tensor(self):
        edit = Editor(load("network_two_inputs")[0])
        for size in (-1, 0, -5):
            text = message(edit.patch(edit.dimension(0, 0), size))
            self.assertIn("tensor 0 (input): dynamic or empty shape", text)

    def test_overflowing_sizes(self):
        edit = Editor(load("relu_01")[0])
        huge = edit.patch(edit.dimension(0, 0), 0x7FFFFFFF)
        self.assertTrue(message(huge))
        huge = Editor(huge).patch(edit.dimension(0, 1), 0x7FFFFFFF)
        self.assertIn("limit", message(huge))

    def test_tensor_index_out_of_range(self):
        edit = Editor(load("add_03")[0])
        for index in (-2, 99, 0x7FFFFFFF):
            self.assertIn("tensor %d of 3" % index, message(edit.patch(edit.operand(0, 0), index)))
        self.assertIn("input 0 is missing", message(edit.patch(edit.operand(0, 0), -1)))

    def test_cycle_through_the_tensors(self):
        edit = Editor(load("add_03")[0])
        self.assertIn("read before it is written", message(edit.patch(edit.operand(0, 1), 2)))

    def test_scales(self):
        edit = Editor(load("add_03")[0])
        for bits in (0, 1, 0x7F800000, 0x7FC00000, 0xBF800000, 0xFFFFFFFF):
            text = message(edit.patch(edit.quantisation(1, 2), bits))
            self.assertIn("tensor 1", text)
            self.assertIn("not usable", text)

    def test_zero_points(self):
        edit = Editor(load("add_03")[0])
        for zero in (128, -129, 1 << 40, -1 << 63):
            self.assertIn("zero points", message(edit.patch(edit.quantisation(2, 3), zero, 8)))

    def test_options(self):
        edit = Editor(load("max_two")[0])
        for field, value in ((1, 0), (2, -1), (3, 0), (4, 0x7FFFFFFF), (1, 0x7FFFFFFF)):
            self.assertIn("MAX_POOL_2D", message(edit.patch(edit.option(0, field), value)), field)
        self.assertIn("activation 9", message(edit.patch(edit.option(0, 5), 9, 1)))

    def test_bias_of_another_size(self):
        """It would be read past its end; the sizes in the file agree with each other."""
        edit = Editor(load("exact_conv_1")[0])
        graph = edit.graph
        weights, bias = graph.operators[0].inputs[1:3]
        self.assertEqual(graph.tensor(bias).kind, 2)
        text = message(edit.patch(edit.operand(0, 2), weights))
        self.assertIn("int8, needed is int32", text)
        shorter = edit.patch(edit.dimension(bias, 0), graph.tensor(bias).shape[0] - 1)
        self.assertIn("tensor %d" % bias, message(shorter))


if __name__ == "__main__":
    unittest.main()
