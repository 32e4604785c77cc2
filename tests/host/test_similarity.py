"""Measures against slow readings of them; ties; own functions."""

import math
import sys

import numpy as np
import pytest
from codebook_kit import clustered, domain

from edge_agent.errors import ConfigError
from gateway.similarity import hamming, measure, rank

ROWS = clustered(60, 3)[0]
QUERY = clustered(1, 4)[0][0]


def slow(name, a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    if name == "dot":
        return dot
    if name == "l2":
        return -math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    norms = sum(x * x for x in a) * sum(x * x for x in b)
    return dot / math.sqrt(norms) if norms else 0.0


@pytest.mark.parametrize("name", ["cosine", "dot", "l2"])
def test_measures(name):
    rows = np.concatenate([ROWS, np.zeros((1, 64), np.int8)])
    order, scores = rank(name, QUERY.tobytes(), rows)
    wanted = [slow(name, QUERY.tolist(), row.tolist()) for row in rows]
    assert scores == pytest.approx(wanted)
    assert order == sorted(range(61), key=lambda i: (-scores[i], i))


def test_hamming_counts_equal_bits_of_fingerprints():
    known = domain()
    mine = known.fingerprint(QUERY.tobytes())
    order, scores = rank(measure("hamming", known), QUERY.tobytes(), ROWS)
    assert scores.tolist() == [hamming(mine, known.fingerprint(row.tobytes())) for row in ROWS]
    assert scores[order[0]] == max(scores)
    with pytest.raises(ConfigError):
        measure("hamming")


def test_the_order_of_candidates_does_not_matter():
    rows = np.concatenate([ROWS[:5], ROWS[:5]])
    ids = [bytes([9 - i]) for i in range(10)]
    order, _ = rank("cosine", QUERY, rows, ids)
    shuffled = [3, 1, 4, 0, 9, 2, 6, 5, 8, 7]
    again, _ = rank("cosine", QUERY, rows[shuffled], [ids[i] for i in shuffled])
    assert [ids[i] for i in order] == [ids[shuffled[i]] for i in again]
    twins = [order.index(i) - order.index(i + 5) for i in range(5)]
    assert twins == [1] * 5  # the lower id first


def test_no_candidates():
    assert rank("cosine", QUERY, [])[0] == []


def manhattan(query, rows):
    return -np.abs(rows.astype(int) - query).sum(1)


def wrong_shape(query, rows):
    return [1.0]


def test_own_function():
    name = f"{__name__}:manhattan"
    order, scores = rank(name, QUERY, ROWS)
    assert scores.tolist() == manhattan(QUERY, ROWS).tolist()
    assert rank(manhattan, QUERY, ROWS)[0] == order
    with pytest.raises(ConfigError):
        rank(f"{__name__}:wrong_shape", QUERY, ROWS)


@pytest.mark.parametrize(
    "name", ["euclid", "", ":x", "os:", "no_such_module_:f", "math:nothing", "math:pi", "a:b c"]
)
def test_unknown_names(name):
    assert "no_such_module_" not in sys.modules
    with pytest.raises(ConfigError):
        measure(name)
