"""Cells: paths that everyone finds alike, keys, the probe's order and the split rule."""

import hashlib
import hmac

import cbor2
import numpy as np
import pytest
from codebook_kit import clustered, codebook
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import cells
from gateway.cells import Probe, assign, path_key, settle, share_budget
from gateway.codebook import to_radius
from gateway.sketch import INT4, SIGN


def slow_directions(book, a):
    """Directions of a level-1 region, read literally, in Python's integers."""
    name = b"qis cut" + book.domain_id + book.version.to_bytes(2, "big") + a.to_bytes(2, "big")
    bits = "".join(format(byte, "08b") for byte in hashlib.sha256(name).digest())
    rows = [[1 if bit == "1" else -1 for bit in bits[64 * j : 64 * j + 64]] for j in range(4)]
    centroids = [[int(x) for x in row] for row in book.centroids2[a]]
    mean = [sum(column) // len(centroids) for column in zip(*centroids, strict=True)]
    away = [[x - m for x, m in zip(row, mean, strict=True)] for row in centroids]
    square = [[sum(row[i] * row[k] for row in away) for k in range(64)] for i in range(64)]

    def product(x, y):
        return sum(p * q for p, q in zip(x, y, strict=True))

    for j in range(4):
        x = rows[j]
        for _ in range(16):
            x = [product(row, x) for row in square]
            for d in rows[:j]:
                along, length = product(x, d), product(d, d)
                x = [p - q * along // length for p, q in zip(x, d, strict=True)]
            largest = max(map(abs, x))
            if not largest:
                break
            x = [p * 32767 // largest for p in x]
        else:
            largest = max(map(abs, x))
            rows[j] = [p * 127 // largest for p in x]
    return rows


def slow_path(book, decoded, directions):
    """The definition, read literally."""
    v = [int(x) for x in decoded]
    if book.radius:
        length = 0
        square = sum(x * x for x in v)
        while (length + 1) ** 2 <= square:
            length += 1
        length = max(length, 1)
        v = [max(-127, min(127, (2 * x * book.radius + length) // (2 * length))) for x in v]

    def nearest(centroids):
        found = [sum((a - int(b)) ** 2 for a, b in zip(v, c, strict=True)) for c in centroids]
        return found.index(min(found))

    a = nearest(book.centroids1)
    b = nearest(book.centroids2[a])
    bits = format(a, f"0{book.levels1}b") + format(b, f"0{book.levels2}b")
    path = [int(bit) for bit in bits]
    if a not in directions:
        directions[a] = slow_directions(book, a)
    sides = []
    for row, spread in zip(directions[a], book.spread[a], strict=True):
        away = [p - int(q) for p, q in zip(v, book.centroids2[a][b], strict=True)]
        x = 1024 * sum(p * q for p, q in zip(row, away, strict=True))
        first = x >= 0
        second = x >= (691 if first else -691) * int(spread)
        third = x >= {0: -1178, 1: -326, 2: 326, 3: 1178}[2 * first + second] * int(spread)
        sides.append((first, second, third))
    return tuple(path + [int(sides[j][cut]) for cut in range(3) for j in range(4)])


@pytest.mark.parametrize("kind, radius", [(INT4, 0), (INT4, 300), (SIGN, 0)])
def test_paths_are_those_of_the_definition(kind, radius):
    book = codebook(kind, radius=radius)
    vectors = np.concatenate([clustered(25, 5)[0], np.zeros((1, 64), np.int8)])
    decoded = book.sketcher.decode_many(book.sketcher.encode_many(vectors))
    full, directions = assign(book, decoded), {}
    assert full == [slow_path(book, row, directions) for row in decoded]
    assert {len(path) for path in full} == {cells.levels(book)} == {4 + 2 + 12}
    assert assign(book, decoded[3].tobytes()) == [full[3]]
    assert assign(book, decoded[:0]) == []


def test_directions_of_a_region_with_one_part():
    """Nothing to tell apart: they stay where they started, and nothing divides by zero."""
    book = codebook(k1=2, k2=1)
    assert book.directions(0).tolist() == slow_directions(book, 0)
    assert set(np.unique(book.directions(0))) == {-1, 1}
    assert len(assign(book, bytes(64))[0]) == 1 + 0 + 12


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=64, max_size=64), st.integers(1, 1023))
def test_lengths_are_exact(vector, radius):
    row = np.frombuffer(vector, np.int8)[None]
    square = int((row.astype(int) ** 2).sum())
    length = max(int(square**0.5), 1)
    while length * length > max(square, 1):
        length -= 1
    while (length + 1) ** 2 <= square:
        length += 1
    wanted = [max(-127, min(127, (2 * int(x) * radius + length) // (2 * length))) for x in row[0]]
    assert to_radius(row, radius)[0].tolist() == wanted


def test_key():
    text = cbor2.dumps(["qis cell", bytes(8), 3, 2, [4, 1]])
    wanted = hmac.new(b"k" * 32, text, "sha256").digest()[:20]
    assert path_key(b"k" * 32, bytes(8), 3, 2, (4, 1)) == wanted
    assert path_key(b"", bytes(8), 3, 2, (4, 1)) == path_key(bytes(32), bytes(8), 3, 2, (4, 1))
    keys = {
        path_key(network, domain, version, label, path)
        for network in (b"", b"k" * 32)
        for domain in (bytes(8), bytes(7) + b"\x01")
        for version in (1, 2)
        for label in (None, 0, 1)
        for path in ((0,), (0, 0), (1,))
    }
    assert len(keys) == 2 * 2 * 2 * 3 * 3
    assert cells.agent_key(b"", bytes(8), 1, (0,)) == path_key(b"", bytes(8), 1, None, (0,))


def test_names_of_cells():
    book = codebook()
    assert cells.children(book, ()) == [(0,), (1,)]
    assert cells.children(book, (0, 1)) == [(0, 1, 0), (0, 1, 1)]
    assert cells.children(book, (0,) * 18) == []
    for good in ((0,), (1, 0, 1), (1,) * 18):
        assert cells.valid_path(book, good)
    for bad in ((), (2,), (-1,), (0, 1, 2), (0,) * 19):
        assert not cells.valid_path(book, bad)


class World:
    """Pointers of one label, placed by the rule, moved down as renewals would."""

    def __init__(self, book, decoded, limit=64):
        self.book, self.keys, self.marked = book, {}, set()
        self.paths = assign(book, decoded)
        self.homeless = 0
        where = {}
        before = None
        while where != before:  # announce, then renew until nothing moves
            before, self.homeless = dict(where), 0
            for i, path in enumerate(self.paths):
                if i in where:
                    self.keys[where[i]].discard(i)
                seen = {}
                step = settle(path, seen, limit)
                while step.read is not None:
                    here = step.read
                    seen[here] = (len(self.keys.get(here, ())), here in self.marked)
                    step = settle(path, seen, limit)
                self.marked.update(step.markers)
                if step.place is None:
                    where.pop(i, None)
                    self.homeless += 1
                else:
                    where[i] = step.place
                    self.keys.setdefault(step.place, set()).add(i)

    def ask(self, probe, at_once=4):
        found, asked = set(), []
        while batch := probe.take(at_once):
            asked += batch
            for cell in batch:
                here = self.keys.get(cell, set())
                found |= here
                probe.saw(cell, len(here), cell in self.marked)
        return found, asked


@pytest.fixture(scope="module")
def world():
    book = codebook()
    vectors = clustered(6000, 11)[0]
    return World(book, book.sketcher.decode_many(book.sketcher.encode_many(vectors)))


def test_no_key_above_the_limit_and_nothing_left_at_split_ones(world):
    assert not world.homeless
    sizes = [len(members) for members in world.keys.values() if members]
    assert sum(sizes) == 6000
    assert max(sizes) <= 64 and sum(sizes) / len(sizes) > 20
    assert not any(world.keys.get(cell) for cell in world.marked)


@pytest.mark.parametrize("known", [False, True])
def test_probe_finds_everything_in_the_end(world, known):
    """Each cell is asked once; with the splits known, the own leaf comes first."""
    for i in range(0, 6000, 600):
        decoded = bytes(np.array(clustered(6000, 11)[0][i]).view(np.uint8))
        probe = Probe(world.book, decoded, budget=10**6)
        if known:
            probe.seed_splits(world.marked)
        found, asked = world.ask(probe)
        assert found == set(range(6000))
        assert len(asked) == len(set(asked)) == probe.used
        assert all(cells.valid_path(world.book, cell) for cell in asked)
        if known:
            assert not world.marked & set(asked)


def test_a_small_budget_finds_the_near_ones(world):
    vectors = clustered(6000, 11)[0]
    decoded = world.book.sketcher.decode_many(world.book.sketcher.encode_many(vectors))
    own = dict.fromkeys((False, True), 0)
    for i in range(0, 6000, 60):
        for known in own:
            probe = Probe(world.book, decoded[i].tobytes(), budget=12)
            if known:
                probe.seed_splits(world.marked)
            found, asked = world.ask(probe)
            assert len(asked) == probe.used <= 12
            own[known] += i in found
    assert own[True] > 90
    assert own[False] > 20  # it finds the way down by itself


def test_probe_stops_when_all_is_asked():
    book = codebook()
    probe = Probe(book, bytes(64), budget=1000)
    assert probe.take(1) == [(0,)] or probe.used == 1
    asked = []
    while batch := probe.take(50):
        asked += batch
        for cell in batch:
            probe.saw(cell, 0, False)
    assert len(asked) == 1  # nothing anywhere: both halves were asked, no more
    probe.saw((7,), 0, True)  # nonsense from a stranger
    assert probe.take(5) == []
    probe.saw_split((1,))
    assert set(probe.take(9)) == {(1, 0), (1, 1)}


def test_unanswered_cells_do_not_stop_the_probe():
    probe = Probe(codebook(), bytes(64), budget=24)
    while probe.take(5):
        pass
    assert 1 <= probe.used <= 24


@given(st.lists(st.integers(0, 255), max_size=9), st.integers(1, 40), st.integers(1, 5))
def test_shares_add_up(confidences, total, most):
    shares = share_budget(confidences, total, most)
    assert len(shares) == len(confidences)
    assert sum(shares) == (total if confidences else 0)
    assert sum(1 for share in shares if share) <= most
    used = [c for c, share in zip(confidences, shares, strict=True) if share]
    unused = [c for c, share in zip(confidences, shares, strict=True) if not share]
    if total >= 2 * most and used and unused:
        assert min(used) >= max(unused)


def test_shares():
    assert share_budget([200, 40, 10, 3, 2]) == [13, 5, 3, 3, 0]
    assert share_budget([255]) == [24]
    assert share_budget([0, 0]) == [24, 0]


def test_settle_reads_down_until_there_is_room():
    path = (1, 0, 1, 1, 0)
    seen = {}
    assert settle(path, seen) == ((1,), None, [])
    seen[(1,)] = (63, False)
    assert settle(path, seen) == (None, (1,), [])
    seen[(1,)] = (64, False)
    assert settle(path, seen) == ((1, 0), None, [(1,)])
    seen[(1,)] = (0, True)  # split: nothing goes there any more
    seen[(1, 0)] = (200, False)  # someone did not keep to the rule
    seen[(1, 0, 1)] = (0, False)
    assert settle(path, seen) == (None, (1, 0, 1), [(1, 0)])
    for level in range(1, 6):
        seen[path[:level]] = (64, level < 5)
    assert settle(path, seen) == (None, None, [])


def test_one_point_many_times_fills_its_whole_path():
    """Cuts do not part equal vectors: after the last level there is no place, and it says so."""
    book = codebook()
    world = World(book, np.zeros((100, 64), np.int8))
    (leaf,) = (cell for cell, members in world.keys.items() if members)
    assert leaf == world.paths[0] and len(world.keys[leaf]) == 64
    assert world.homeless == 36
