import unittest

from tflite_models import load, run_all

from mpy_port.tflite import Interpreter, ModelError, planner
from mpy_port.tflite.flatbuffer import Graph

# Sizes of the activations of a MobileNet v1 0.25 for 96 x 96 x 3, in the order they are made.
MOBILE = (27648, 18432, 18432, 36864, 9216, 18432, 18432, 18432, 4608, 9216, 9216, 9216, 2304, 4608)


def chain(sizes):
    """Each block is written by one operator and read by the next."""
    return [(size, k - 1, k) for k, size in enumerate(sizes)]


def overlap(blocks, offsets):
    for i, (size, first, last) in enumerate(blocks):
        for j in range(i):
            other, begun, done = blocks[j]
            apart = offsets[i] >= offsets[j] + other or offsets[j] >= offsets[i] + size
            if begun <= last and first <= done and not apart:
                return True
    return False


class Placement(unittest.TestCase):
    def test_chain_of_a_mobile_network(self):
        blocks = chain(MOBILE)
        bound = planner.lower_bound(blocks)
        self.assertEqual(bound, 55296)
        offsets, total = planner.greedy(blocks)
        self.assertGreater(total, bound)
        self.assertFalse(overlap(blocks, offsets))
        offsets, total = planner.search(blocks)
        self.assertEqual(total, bound)
        self.assertFalse(overlap(blocks, offsets))
        self.assertEqual(max(offsets[k] + blocks[k][0] for k in range(len(blocks))), total)

    def test_random_lifetimes(self):
        state, worse = 7, 0
        for _ in range(20):
            blocks = []
            for _ in range(12):
                state = (state * 1103515245 + 12345) & 0x3FFFFFFF
                first = (state >> 9) % 10
                blocks.append(((state >> 5) % 100 * 4 + 4, first, first + (state >> 17) % 5))
            bound = planner.lower_bound(blocks)
            quick, greedy = planner.greedy(blocks)
            best, total = planner.search(blocks, 300)
            self.assertFalse(overlap(blocks, quick) or overlap(blocks, best))
            self.assertTrue(bound <= total <= greedy, (bound, total, greedy))
            worse += greedy > total
        self.assertGreater(worse, 0)

    def test_search_is_repeatable(self):
        blocks = chain(MOBILE)
        self.assertEqual(planner.search(blocks, 500), planner.search(blocks, 500))


class Plans(unittest.TestCase):
    def test_plan_is_used(self):
        model, feed, out = load("network_menagerie")
        plan, total, greedy, bound = planner.make_plan(model)
        self.assertTrue(bound <= total <= greedy)
        loaded = Interpreter(model, plan=plan)
        self.assertEqual((loaded.planned, loaded.arena_bytes), (True, total))
        self.assertEqual(run_all(loaded, feed), out)
        self.assertFalse(Interpreter(model).planned)

    def test_any_sound_plan_gives_the_same_results(self):
        model, feed, out = load("network_menagerie")
        graph = Graph(model)
        layout = planner.layout(graph)
        at, offsets = 0, []
        for size, _, _ in layout.blocks:
            offsets.append(at)
            at += size + 4
        plan = planner.encode(graph, layout, offsets)
        loaded = Interpreter(model, plan=plan)
        self.assertEqual(loaded.arena_bytes, at - 4)
        self.assertEqual(run_all(loaded, feed), out)

    def test_plan_of_another_model_is_refused(self):
        model = load("network_menagerie")[0]
        plan = planner.make_plan(model)[0]
        other = planner.make_plan(load("network_two_inputs")[0])[0]
        zeros = plan[:12] + bytes(len(plan) - 12)
        for wrong in (b"", plan[:-1], plan + b"\0", other, zeros, b"\2" + plan[1:]):
            self.assertRaises(ModelError, Interpreter, model, None, wrong)

    def test_plan_that_needs_too_much_is_refused(self):
        model = load("add_03")[0]
        plan = planner.make_plan(model)[0]
        far = plan[:12] + b"\0\0\0\x7f" + plan[16:]
        self.assertRaises(ModelError, Interpreter, model, None, far)

    def test_equal_blocks_keep_their_order(self):
        """MicroPython's sort is not stable; every machine must place alike."""
        blocks = [(16 if k % 3 else 32, k, k + 1) for k in range(60)]
        wanted = [k for k in range(60) if not k % 3] + [k for k in range(60) if k % 3]
        self.assertEqual(planner.by_size(blocks), wanted)

    def test_reshape_shares_its_input(self):
        graph = Graph(load("reshape_0")[0])
        layout = planner.layout(graph)
        self.assertEqual(len(layout.blocks), 2)
        self.assertEqual(list(layout.shares.values()), [graph.inputs[0]])


if __name__ == "__main__":
    unittest.main()
