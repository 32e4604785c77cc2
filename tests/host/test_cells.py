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
from gateway.cells import MAX_LEVEL, Probe, assign, path_key, settle, share_budget
from gateway.codebook import to_radius
from gateway.sketch import INT4, SIGN


def slow_path(book, decoded):
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

    path = [nearest(book.centroids1)]
    path.append(nearest(book.centroids2[path[0]]))
    centre = book.centroids2[path[0]][path[1]]
    digest = hashlib.sha256(b"qis split" + book.id + cbor2.dumps(path)).digest()
    bits = "".join(format(byte, "08b") for byte in digest)
    spread = int(book.spread[path[0]][path[1]])
    sides = []
    for j in range(4):
        x = sum(
            (a - int(c)) * (1 if s == "1" else -1)
            for a, c, s in zip(v, centre, bits[64 * j : 64 * j + 64], strict=True)
        )
        first = 1024 * x >= 0
        second = 1024 * x >= (691 if first else -691) * spread
        third = 1024 * x >= {0: -1178, 1: -326, 2: 326, 3: 1178}[2 * first + second] * spread
        sides.append((first, second, third))
    for cut in range(3):
        path.append(2 * sides[0][cut] + sides[1][cut])
        path.append(2 * sides[2][cut] + sides[3][cut])
    return tuple(path)


@pytest.mark.parametrize("kind, radius", [(INT4, 0), (INT4, 300), (SIGN, 0)])
def test_paths_are_those_of_the_definition(kind, radius):
    book = codebook(kind, radius=radius)
    vectors = np.concatenate([clustered(25, 5)[0], np.zeros((1, 64), np.int8)])
    decoded = book.sketcher.decode_many(book.sketcher.encode_many(vectors))
    full = assign(book, decoded)
    assert full == [slow_path(book, row) for row in decoded]
    for level in range(1, MAX_LEVEL + 1):
        assert assign(book, decoded, level) == [path[:level] for path in full]
    assert assign(book, decoded[3].tobytes()) == [full[3]]
    assert assign(book, decoded[:0]) == []


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
    assert len(cells.children(book, ())) == 16
    assert cells.children(book, (3,)) == [(3, b) for b in range(4)]
    assert cells.children(book, (3, 1)) == [(3, 1, c) for c in range(4)]
    assert cells.children(book, (0,) * MAX_LEVEL) == []
    for good in ((0,), (15, 3), (15, 3, 3), (0,) * MAX_LEVEL):
        assert cells.valid_path(book, good)
    for bad in ((), (16,), (-1,), (0, 4), (0, 0, 4), (0,) * (MAX_LEVEL + 1)):
        assert not cells.valid_path(book, bad)


def test_probe_asks_the_own_cell_first_and_each_once():
    book = codebook()
    vectors = clustered(30, 6)[0]
    decoded = book.sketcher.decode_many(book.sketcher.encode_many(vectors))
    for row, path in zip(decoded, assign(book, decoded), strict=True):
        probe = Probe(book, row.tobytes(), budget=12)
        asked = []
        while batch := probe.take(3):
            asked += batch
            for cell in batch:
                if cell == path[: len(cell)]:
                    probe.saw_split(cell)
                    probe.saw_split(cell)
        assert len(asked) == len(set(asked)) == probe.used == 12
        # With every cell on the way split, the way to the own leaf is gone first.
        mine = [cell for cell in asked if cell == path[: len(cell)]]
        assert path[:1] in mine
        assert mine == [path[: i + 1] for i in range(len(mine))]
        assert all(cells.valid_path(book, cell) for cell in asked)


def test_probe_stops_when_all_is_asked():
    book = codebook()
    probe = Probe(book, bytes(64), budget=1000)
    assert len(probe.take(1000)) == book.k1
    assert probe.take(5) == []
    probe.saw_split((99,))  # nonsense from a stranger
    assert probe.take(5) == []
    probe.saw_split((2,))
    assert sorted(probe.take(9)) == cells.children(book, (2,))


def test_known_splits_come_in_the_first_round():
    book = codebook()
    decoded = book.sketcher.rounded(clustered(1, 8)[0].tobytes())
    (path,) = assign(book, decoded)
    probe = Probe(book, decoded)
    probe.seed_splits([path[:2], path[:1]])
    first = probe.take(8)
    assert {path[:1], path[:2], path[:3]} <= set(first)


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
    path = (5, 1, 2, 0, 0, 0, 0, 0)
    seen = {}
    assert settle(path, seen) == ((5,), None, [])
    seen[(5,)] = (63, False)
    assert settle(path, seen) == (None, (5,), [])
    seen[(5,)] = (64, False)
    assert settle(path, seen) == ((5, 1), None, [(5,)])
    seen[(5,)] = (64, True)
    seen[(5, 1)] = (200, False)  # someone did not keep to the rule
    seen[(5, 1, 2)] = (0, False)
    assert settle(path, seen) == (None, (5, 1, 2), [(5, 1)])
    for level in range(1, 9):
        seen[path[:level]] = (64, True)
    assert settle(path, seen) == (None, None, [])


def test_a_busy_cell_fills_and_every_pointer_is_found():
    """3,000 pointers around one point: no key above the limit, none out of the probe's reach."""
    book = codebook()
    rng = np.random.default_rng(4)
    rows = np.clip(clustered(1, 9)[0] + rng.normal(0, 12, (3000, 64)), -127, 127).astype(np.int8)
    decoded = book.sketcher.decode_many(book.sketcher.encode_many(rows))
    keys, marked = {}, set()
    for i, path in enumerate(assign(book, decoded)):
        seen = {}
        step = settle(path, seen)
        while step.read is not None:
            seen[step.read] = (len(keys.get(step.read, [])), step.read in marked)
            step = settle(path, seen)
        assert step.place is not None
        marked.update(step.markers)
        keys.setdefault(step.place, []).append(i)
    assert max(map(len, keys.values())) <= 64
    probe = Probe(book, decoded[0].tobytes(), budget=10**6)
    found = set()
    while batch := probe.take(8):
        for cell in batch:
            found.update(keys.get(cell, []))
            if cell in marked:
                probe.saw_split(cell)
    assert found == set(range(3000))


def test_one_point_many_times_fills_its_whole_path():
    """Cuts do not part equal vectors: after the last level there is no place, and it says so."""
    seen = {}
    path = (5, 1, 2, 0, 0, 0, 0, 0)
    for _ in range(64 * 8):
        step = settle(path, seen)
        while step.read is not None:
            seen[step.read] = (0, False)
            step = settle(path, seen)
        for marker in step.markers:
            seen[marker] = (seen[marker][0], True)
        count, marked = seen[step.place]
        seen[step.place] = (count + 1, marked)
    assert settle(path, seen).place is None
    assert [seen[path[:i]] for i in range(1, 9)] == [(64, True)] * 7 + [(64, False)]
