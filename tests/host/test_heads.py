"""Fitting a last layer, and its integers: the tables of the gateway against the device's own."""

import numpy as np
import pytest
from learn_kit import LABELS, MLP, MODELS, SITES, base, domain, left, lived, right

from edge_agent.head import MULTIPLIER_MAX, Row, decode_row
from gateway import heads
from gateway.base_head import base_of, model_id
from gateway.heads import FloatHead


def random_rows(rng, count=5):
    """Rows with every value that the wire allows, extremes among them."""
    rows = []
    for i in range(count):
        weights = rng.integers(-128, 128, 64).astype(np.int8).tobytes()
        bias = int(rng.choice([0, -(1 << 31), (1 << 31) - 1, int(rng.integers(-9999, 9999))]))
        multiplier = int(rng.choice([0, 1, MULTIPLIER_MAX, int(rng.integers(1 << 31))]))
        rows.append(Row(3, b"", i, count, weights, bias, multiplier, int(rng.integers(0, 63))))
    return rows


def test_tables_give_the_bits_of_a_device():
    rng = np.random.default_rng(1)
    vectors = rng.integers(-128, 128, (40, 64)).astype(np.int8)
    for _ in range(60):
        head = heads.Head(3, b"", random_rows(rng))
        table = heads.scores(head, vectors)
        assert [bytes(row) for row in table] == [head.scores(v.tobytes()) for v in vectors]


def test_tables_give_the_bits_of_a_device_for_a_head_that_was_fitted():
    vectors, _, _ = right(5)
    head = heads.compiled(heads.quantise(heads.fit(base(), left(5), LABELS), 1, b""))
    table = heads.scores(head, vectors)
    assert [bytes(row) for row in table] == [head.scores(v.tobytes()) for v in vectors]
    assert heads.predict(head, vectors).tolist() == [s.index(max(s)) for s in map(bytes, table)]


def test_integers_say_what_the_floats_say():
    for person in SITES:
        floats = heads.fit(base(), left(person), LABELS)
        vectors, _, _ = right(person)
        head = heads.compiled(heads.quantise(floats, 9, b"12345678"))
        assert (head.version, head.model_id) == (9, b"12345678")
        exact = floats.logits(vectors)
        margin = np.sort(exact, 1)[:, -1] - np.sort(exact, 1)[:, -2]
        clear = margin > 0.05
        assert (heads.predict(head, vectors) == exact.argmax(1))[clear].all()
        assert clear.mean() > 0.9
        back = heads.dequantised(head).logits(vectors)
        assert np.abs(back - exact).max() < 0.2


def test_base_is_the_last_layer_of_the_file():
    """The model's own decision, but for the rounding of vectors and logits."""
    agree = total = 0
    for vectors, _, said in lived().values():
        agree += int((base().logits(vectors).argmax(1) == said).sum())
        total += len(said)
    assert agree / total > 0.98


def test_a_base_needs_the_domains_own_encoder():
    assert base_of((MODELS / "watch_cnn_int8.tflite").read_bytes(), domain()) is None
    damaged = bytearray(MLP.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    assert base_of(bytes(damaged), domain()) is None
    assert model_id(MLP.read_bytes()) == domain().space.encoder[:8]


def test_fitting_is_the_same_every_time_and_finds_the_minimum():
    rows = left(7)
    one, two = heads.fit(base(), rows, LABELS), heads.fit(base(), rows, LABELS)
    assert (one.weights == two.weights).all() and (one.bias == two.bias).all()

    x = rows.vectors.astype(float)
    unit = np.sqrt((x * x).mean())
    weights = heads.balanced(rows, LABELS, heads.BALANCE)

    pull = heads.deserved_pull(base(), rows)

    def cost(head):
        p = heads.softmax(head.logits(rows.vectors))
        away = ((head.weights - base().weights) * unit) ** 2
        there = -np.log(p[np.arange(len(p)), rows.labels])
        bias = (head.bias - base().bias) ** 2
        return (weights * there).sum() + pull / 2 * (away.sum() + bias.sum())

    best = cost(one)
    rng = np.random.default_rng(3)
    for _ in range(50):
        w = one.weights + rng.normal(0, 0.002, one.weights.shape)
        assert cost(FloatHead(w, one.bias + rng.normal(0, 0.02, LABELS))) > best


def test_a_base_has_the_pull_that_it_deserves():
    rows = left(4)
    knowing = heads.deserved_pull(base(), rows)
    blind = base()._replace(bias=np.where(np.arange(LABELS) < 3, -90.0, base().bias))
    assert heads.PULL_LEAST < heads.deserved_pull(blind, rows) < knowing <= heads.PULL
    assert heads.deserved_pull(None, rows) == heads.PULL_LEAST


def test_what_base_and_surroundings_contradict_is_left_out():
    rng = np.random.default_rng(4)
    good = wrong = found = kept = 0
    for person in SITES:
        true = left(person)
        turned = rng.random(len(true.labels)) < 0.2
        labels = np.where(turned, (true.labels + 1) % LABELS, true.labels)
        noisy = true._replace(labels=labels)
        out = heads.contradicted(base(), noisy)
        found, wrong = found + int((out & turned).sum()), wrong + int(turned.sum())
        kept, good = kept + int((~out & ~turned).sum()), good + int((~turned).sum())
        # However much they weigh, they change nothing.
        loud = noisy._replace(weights=np.where(out, 99.0, noisy.weights))
        one, two = heads.fit(base(), noisy, LABELS), heads.fit(base(), loud, LABELS)
        assert out.any() and np.array_equal(one.weights, two.weights)
    assert found > 0.4 * wrong and kept > 0.95 * good
    assert not heads.contradicted(base(), noisy.take(np.arange(5))).any()


def test_neighbours_are_the_same_however_many_rows_are_compared_at_once(monkeypatch):
    x, y = heads.unit(left(4).vectors), heads.unit(left(5).vectors)
    whole = heads.nearest(x, x, True), heads.nearest(x, y)
    table = x @ x.T
    np.fill_diagonal(table, -2)
    assert np.allclose(whole[0][1], np.sort(table, 1)[:, : -heads.NEIGHBOURS - 1 : -1])
    monkeypatch.setattr(heads, "AT_ONCE", 7)
    for (order, alike), found in zip(
        whole, (heads.nearest(x, x, True), heads.nearest(x, y)), strict=True
    ):
        assert (order == found[0]).mean() > 0.99 and np.allclose(alike, found[1])
    assert heads.nearest(x[:0], y)[0].shape == (0, heads.NEIGHBOURS)


def test_without_evidence_the_base_stays():
    head = heads.fit(base(), heads.nothing(), LABELS)
    assert (head.weights == base().weights).all()
    wider = heads.fit(base(), heads.nothing(), LABELS + 2)
    assert wider.weights.shape == (9, 64) and wider.bias[8] == base().bias.min()
    # evidence of weight 0 is none
    assert (heads.fit(base(), left(4, 0.0), LABELS).bias == base().bias).all()


def test_evidence_is_joined_and_taken():
    a, b = left(4), heads.evidence([bytes(64)], [3], 0.5, 2, 1)
    both = heads.join(a, b)
    assert len(both.labels) == len(a.labels) + 1
    last = both.take(both.source == 2)
    assert (last.labels.tolist(), last.weights.tolist(), last.old.tolist()) == ([3], [0.5], [1])


def test_balance_has_a_limit():
    rows = heads.evidence(np.ones((101, 64), np.int8), [0] * 100 + [1])
    weights = heads.balanced(rows, 2, 1.0)
    assert weights.sum() == pytest.approx(101)
    assert weights[100] / weights[0] == pytest.approx(heads.BALANCE_MOST / (50.5 / 100))


def test_rows_of_any_scale_can_be_sent():
    """Weights of zero, tiny ones, a bias far above them: each makes a row that a device takes."""
    rng = np.random.default_rng(5)
    for scale in (0.0, 1e-12, 1e-3, 1.0, 1e6):
        head = FloatHead(rng.normal(0, 1, (3, 64)) * scale, np.array([0.0, 900.0, -1e-9]))
        for body in heads.quantise(head, 1, b""):
            row = decode_row(body)
            assert abs(row.bias) < 1 << 31 and 0 <= row.shift <= 62


def test_evaluate_counts_by_weight():
    rows = heads.evidence(np.zeros((4, 64), np.int8), [0, 0, 1, 1], [3.0, 1.0, 1.0, 1.0])
    score = heads.evaluate(np.array([0, 1, 1, 0]), rows)
    assert score.right == pytest.approx(4 / 6)
    assert score.recall == {0: 0.75, 1: 0.5} and score.rows == 4
