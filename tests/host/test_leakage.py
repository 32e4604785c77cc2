"""The attacks of benchmarks/leakage.py do what they say: their weakness is not ours."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import _leak_gradients as gradients  # noqa: E402
from _leak_decoder import explained, ridge  # noqa: E402
from _leak_heads import auc  # noqa: E402


@pytest.fixture(scope="module")
def victim():
    """A perceptron with ReLU, 20 inputs, 40 and 10 units, 4 labels."""
    rng = np.random.default_rng(1)
    layers = (20, 40, 10, 4)
    weights = [rng.normal(0, 0.4, (b, a)) for a, b in pairwise(layers)]
    return gradients.Victim(weights, [rng.normal(0, 0.1, len(w)) for w in weights])


def batch(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 20)), np.eye(4)[rng.integers(0, 4, count)]


def test_the_gradient_is_the_gradient(victim):
    x, truth = batch(5)

    def loss(net):
        return -np.log((gradients._forward(net, x)[1] * truth).sum(1)).mean()

    sent = gradients.gradient(victim, x, truth)
    for k, row, column in ((0, 3, 7), (1, 2, 11), (2, 1, 4)):
        found = []
        for step in (1e-6, -1e-6):
            weights = [w.copy() for w in victim.weights]
            weights[k][row, column] += step
            found.append(loss(gradients.Victim(weights, victim.biases)))
        assert sent.weights[k][row, column] == pytest.approx((found[0] - found[1]) / 2e-6, abs=1e-7)


def test_the_derivative_of_the_mismatch(victim):
    x, truth = batch(3)
    sent = gradients.gradient(victim, *batch(3, 1))
    total, slope = gradients.mismatch(victim, x, truth, sent)
    assert total > 0 and gradients.mismatch(victim, *batch(3, 1), sent)[0] < 1e-20
    for row in range(3):
        for column in range(0, 20, 3):
            found = []
            for step in (1e-6, -1e-6):
                moved = x.copy()
                moved[row, column] += step
                found.append(gradients.mismatch(victim, moved, truth, sent)[0])
            assert slope[row, column] == pytest.approx((found[0] - found[1]) / 2e-6, abs=1e-6)


def test_one_window_comes_back_exactly(victim):
    x, truth = batch(1)
    rows = gradients.first(gradients.gradient(victim, x, truth))
    assert np.abs(rows - x).max() < 1e-9


@pytest.mark.parametrize("count", [2, 5])
def test_a_batch_comes_back_exactly(victim, count):
    x, truth = batch(count, 3)
    sent = gradients.gradient(victim, x, truth)
    found = gradients.sparse(sent, count, np.random.default_rng(0), 200_000)
    assert found is not None
    error = np.abs(x[:, None] - found[None]).max(2).min(1)
    assert error.max() < 1e-6


def test_a_batch_larger_than_the_inputs_does_not(victim):
    x, truth = batch(30)
    sent = gradients.gradient(victim, x, truth)
    assert gradients.sparse(sent, 30, np.random.default_rng(0), 2000) is None


def test_matching_finds_one_window(victim):
    x, truth = batch(1)
    sent = gradients.gradient(victim, x, truth)
    found = gradients.matched(victim, truth, sent, np.random.default_rng(0), 1500, 3)
    start, _ = gradients.mismatch(victim, np.zeros_like(x), truth, sent)
    assert gradients.mismatch(victim, found, truth, sent)[0] < start / 100


def test_decoders_and_scores():
    rng = np.random.default_rng(0)
    seen, target = rng.normal(size=(300, 4)), rng.normal(size=(50, 4))
    mix = rng.normal(size=(4, 6))
    assert explained(target @ mix, ridge(seen, seen @ mix, target)) > 0.99
    assert explained(target, np.tile(target.mean(0), (50, 1))) == pytest.approx(0)
    assert auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert auc(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0.5
