"""Neighbours: a table of fixed size, and a vote that nobody can inflate."""

import unittest

import golden
from rig import Rand

from edge_agent.errors import FrameError
from edge_agent.synthesis import (
    DEPTH_MAX,
    MOST,
    RECORD,
    STATE_MAX,
    VOTERS,
    Neighbour,
    Neighbours,
    decode_neighbour,
    encode_neighbour,
    vote,
)

MAIL = golden.load("mail")


def name(n):
    return bytes([n >> 8, n & 255]) * 8


def along(*axes):
    """A vector of length 127 (or so) along some axes."""
    out = bytearray(64)
    for axis in axes:
        out[axis] = 127
    return bytes(out)


def near(n=1, vector=None, label=1, weight=200, flags=0, depth=0):
    return Neighbour(name(n), along(0) if vector is None else vector, label, weight, flags, depth)


def table(*neighbours, most=MOST, depth=DEPTH_MAX, ttl_h=720):
    made = Neighbours(most, depth, ttl_h)
    for neighbour in neighbours:
        made.add(neighbour, 0)
    return made


class Codec(unittest.TestCase):
    def test_round_trip(self):
        for made in (near(), near(65535, bytes(range(192, 256)), 65535, 255, 255, 255)):
            self.assertEqual(decode_neighbour(encode_neighbour(made)), made)
        known = decode_neighbour(golden.unhex(MAIL["bodies"]["neighbour"]))
        self.assertEqual(encode_neighbour(known).hex(), MAIL["bodies"]["neighbour"])

    def test_out_of_range(self):
        good = near()
        for i, value in (
            (0, bytes(15)), (0, "x" * 16), (1, bytes(63)), (1, None), (2, 65536), (2, -1),
            (2, True), (3, 256), (4, -1), (5, 256), (5, b""),
        ):  # fmt: skip
            values = list(good)
            values[i] = value
            with self.assertRaises(FrameError):
                encode_neighbour(Neighbour(*values))

    def test_every_truncation(self):
        good = encode_neighbour(near())
        for end in range(len(good)):
            with self.assertRaises(FrameError):
                decode_neighbour(good[:end])
        with self.assertRaises(FrameError):
            decode_neighbour(b"\x80")


class Vote(unittest.TestCase):
    def test_golden(self):
        for case in MAIL["votes"]:
            neighbours = Neighbours(MOST)
            for body in case["neighbours"]:
                neighbours.add(decode_neighbour(golden.unhex(body)), 0)
            for said in case["said"]:
                vector, scores = golden.unhex(said["vector"]), golden.unhex(said["scores"])
                found = vote(vector, scores, neighbours)
                self.assertEqual([p.hex() for p in found.parents], said["parents"])
                self.assertEqual(
                    [found.label, found.confidence, found.depth],
                    [said["label"], said["confidence"], said["depth"]],
                )

    def test_alone(self):
        """No neighbours, or none that is alike: the own opinion as it is."""
        for neighbours in (table(), table(near(1, along(1)), near(2, along(0, 1, 2)))):
            said = vote(along(0), bytes([9, 30, 200]), neighbours)
            self.assertEqual(said, (2, 200, (), 0))
        self.assertEqual(vote(bytes(64), bytes([9, 30]), table(near())), (1, 30, (), 0))
        self.assertEqual(vote(along(0), bytes([9, 30]), table(near(weight=0))), (1, 30, (), 0))

    def test_who_is_like_is_heard(self):
        said = vote(along(0), bytes([120, 100]), table(near(7)))
        self.assertEqual((said.label, said.parents, said.depth), (1, (name(7),), 1))
        # Support 768 * 120, and 768 * 100 + 4 * 256 * 200; 200 is the surest of all.
        self.assertEqual(said.confidence, 255 * 281600 // (281600 + 92160))
        said = vote(along(0), bytes([20, 100]), table(near(7)))
        self.assertEqual(said.confidence, 200)

    def test_a_label_the_model_does_not_know(self):
        said = vote(along(0), bytes([90, 80]), table(near(7, label=5, weight=255)))
        self.assertEqual((said.label, said.parents), (5, (name(7),)))

    def test_the_two_strongest_take_part_in_any_order(self):
        those = [
            near(5, weight=100), near(3, weight=100), near(9, weight=100, label=0),
            near(4, weight=90), near(6, weight=101, depth=2),
        ]  # fmt: skip
        for turn in range(5):
            said = vote(along(0), bytes([0, 50]), table(*(those[turn:] + those[:turn])))
            self.assertEqual(said.parents, (name(6), name(3)))
            self.assertEqual(said.depth, 3)

    def test_those_too_deep_do_not_vote(self):
        neighbours = table()
        self.assertEqual(neighbours.add(near(1, depth=DEPTH_MAX + 1), 0), "deep")
        self.assertEqual(neighbours.add(near(2, depth=DEPTH_MAX), 0), "kept")
        self.assertEqual(vote(along(0), b"\x09\x08", neighbours).depth, DEPTH_MAX + 1)
        self.assertEqual(table(near(1, depth=1), depth=0).data, b"")

    def test_never_surer_than_the_surest(self):
        rand = Rand(11)
        for _ in range(600):
            r = rand.bytes(200)
            neighbours, heard = table(), {}
            for i in range(1 + r[0] % 6):
                vector = bytearray(r[8:72])
                vector[i] ^= 0x55
                one = near(i, bytes(vector), r[100 + i] % 3, r[110 + i], 0, r[120 + i] % 5)
                if neighbours.add(one, 0) == "kept":
                    heard[one.id] = one
            scores = bytes(r[130:133])
            said = vote(r[8:72], scores, neighbours)
            surest = scores[said.label]
            for parent in said.parents:
                if heard[parent].label == said.label:
                    surest = max(surest, heard[parent].weight)
            self.assertTrue(said.confidence <= surest)
            self.assertTrue(len(said.parents) <= VOTERS)
            deepest = max([heard[p].depth for p in said.parents] or [-1])
            self.assertEqual(said.depth, deepest + 1)

    def test_likeness_is_of_directions(self):
        short = bytes([1] * 64)
        self.assertEqual(vote(bytes([127] * 64), b"\x00\x00", table(near(1, short)))[1], 200)
        self.assertEqual(vote(bytes([129] * 64), b"\x00\x00", table(near(1, short))).parents, ())


class Table(unittest.TestCase):
    def test_never_larger_than_2_kilobytes(self):
        self.assertEqual((MOST, RECORD * MOST <= STATE_MAX), (23, True))
        rand = Rand(3)
        for most in (0, 1, 5, MOST, 1000):
            neighbours = Neighbours(most)
            for n in range(120):
                r = rand.bytes(80)
                neighbours.add(near(n, r[:64], r[64] % 4, r[65], 0, r[66] % 3), n // 10)
                self.assertTrue(len(neighbours.data) <= min(most, MOST) * RECORD <= STATE_MAX)
            self.assertEqual(len(neighbours), min(most, MOST))

    def test_survives_as_bytes(self):
        neighbours = table(*[near(n, along(n), n % 3, 10 * n, 0, n % 3) for n in range(1, 9)])
        again = Neighbours(MOST, data=bytes(neighbours.data))
        for n in range(1, 9):
            self.assertEqual(again.strongest(along(n), 5), neighbours.strongest(along(n), 5))
        self.assertEqual(len(Neighbours(3, data=bytes(neighbours.data))), 3)
        self.assertEqual(len(Neighbours(9, data=bytes(neighbours.data) + b"half")), 8)

    def test_the_least_gives_way(self):
        neighbours = table(near(1, weight=50), near(2, along(2), weight=20), most=2)
        self.assertEqual(neighbours.add(near(3, along(3), weight=19), 0), "crowded")
        self.assertEqual(neighbours.add(near(4, along(4), weight=30), 0), "kept")
        self.assertEqual(ids(neighbours), [name(1), name(4)])
        self.assertEqual(neighbours.add(near(5, along(5), weight=30), 0), "kept")
        self.assertEqual(ids(neighbours), [name(1), name(5)])

    def test_one_that_says_the_same_gives_way_first(self):
        neighbours = table(near(1, weight=90), near(2, along(2), weight=20), most=2)
        self.assertEqual(neighbours.add(near(3, weight=95), 0), "kept")
        self.assertEqual(ids(neighbours), [name(2), name(3)])
        self.assertEqual(neighbours.add(near(4, weight=94), 0), "crowded")
        self.assertEqual(neighbours.add(near(5, weight=96, label=0), 0), "kept")
        self.assertEqual(ids(neighbours), [name(3), name(5)])

    def test_the_same_outcome_is_replaced(self):
        neighbours = table(near(1, weight=90), near(1, weight=30, label=2))
        self.assertEqual(len(neighbours), 1)
        self.assertEqual(neighbours.strongest(along(0), 0)[0][1], near(1, weight=30, label=2))

    def test_old_ones_expire(self):
        neighbours = Neighbours(5, ttl_h=10)
        neighbours.add(near(1), 65530)
        neighbours.add(near(2, along(2)), 65535)
        self.assertEqual(len(neighbours.strongest(along(0), 65540)), 1)
        self.assertEqual(neighbours.strongest(along(0), 65541), [])
        self.assertEqual(len(neighbours.strongest(along(2), 65545)), 1)
        neighbours.add(near(3, along(3)), 65550)
        self.assertEqual(ids(neighbours), [name(3)])

    def test_clear(self):
        neighbours = table(near(1), near(2))
        neighbours.clear()
        self.assertEqual((len(neighbours), neighbours.strongest(along(0), 0)), (0, []))


def ids(neighbours):
    d = neighbours.data
    return sorted([bytes(d[at : at + 16]) for at in range(0, len(d), RECORD)])


if __name__ == "__main__":
    unittest.main()
