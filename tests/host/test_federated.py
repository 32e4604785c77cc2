"""The parts of benchmarks/federated.py: rivals trained as they are defined, fetching as it says."""

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import _fl_methods as methods  # noqa: E402
import _fl_outcome as outcome  # noqa: E402
from _fl_data import World, given  # noqa: E402
from _fl_stats import compare, holm, interval  # noqa: E402
from _fl_svg import Plot, Series  # noqa: E402
from _fl_train import Recipe, forward, rows, size, softmax, stack, train  # noqa: E402

from models import mlp  # noqa: E402

WIDTHS = (6, 64, 64, 3)


def world(seed: int = 0, sites: int = 4) -> World:
    """Made-up rows; site 0 is the smallest."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, WIDTHS[0])).astype(np.float32)
    truth = rng.integers(0, 3, 200)
    net = mlp.train(x, np.eye(3, dtype=np.float32)[truth], WIDTHS, mlp.Recipe(epochs=2), seed)
    embedding = mlp.forward(net, x)[-2]
    vectors = np.clip(np.rint(embedding * 20), -127, 127).astype(np.int8)
    scores = np.rint(255 * mlp.softmax(mlp.forward(net, x)[-1])).astype(np.uint8)
    cuts = [np.arange(5), *np.array_split(np.arange(5, 120), sites - 1)]
    test = np.array_split(np.arange(120, 200), sites)
    return World("made up", seed, net, b"", x, vectors, scores, truth, cuts, test)


def nets_of(w: World, sites: int) -> "list[np.ndarray]":
    return stack([(w.net.weights, w.net.biases)], sites)


def data_of(w: World) -> "object":
    return rows(w.inputs[None], [w.learn], [w.truth])


def loss(nets: "list[np.ndarray]", x: np.ndarray, y: np.ndarray) -> float:
    p = softmax(forward(nets, x[None])[-1])[0]
    return float(-np.log(p[np.arange(len(y)), y]).mean())


def test_one_step_goes_down_the_gradient_of_each_nets_own_rows():
    w = world()
    nets = [layer.astype(np.float64) for layer in nets_of(w, 4)]
    moved = train(nets, data_of(w), Recipe(1, 1.0), np.random.default_rng(0))
    x, y = w.inputs[w.learn[0]].astype(np.float64), w.truth[w.learn[0]]  # 5 rows: one batch
    for layer in range(6):
        for at in ((0, 0), (1, 2), (2, 5))[: 3 if layer < 3 else 0] or ((0,), (2,)):
            slope = nets[layer][(0, *at)] - moved[layer][(0, *at)]
            mine = [one[:1].copy() for one in nets]
            mine[layer][(0, *at)] += 1e-5
            up = loss(mine, x, y)
            mine[layer][(0, *at)] -= 2e-5
            assert slope == pytest.approx((up - loss(mine, x, y)) / 2e-5, abs=2e-5)


def test_a_site_takes_as_many_steps_as_it_has_batches():
    w = world()
    recipe = Recipe(1, 0.1)
    together = train(nets_of(w, 4), data_of(w), recipe, np.random.default_rng(0))
    alone = train(
        nets_of(w, 1),
        rows(w.inputs[None], [[w.learn[0]]], [w.truth]),
        recipe,
        np.random.default_rng(5),
    )
    for a, b in zip(together, alone, strict=True):
        assert np.allclose(a[0], b[0], atol=1e-6)


def test_offline_sites_and_frozen_layers_stay():
    w = world()
    nets = nets_of(w, 4)
    online = np.array([True, False, True, True])
    moved = train(
        nets, data_of(w), Recipe(2, 0.1, head_only=True), np.random.default_rng(0), online
    )
    for layer in (0, 1, 3, 4):
        assert np.array_equal(moved[layer], nets[layer])
    for layer in (2, 5):
        assert np.array_equal(moved[layer][1], nets[layer][1])
        assert not np.array_equal(moved[layer][0], nets[layer][0])
    assert size(nets) == 6 * 64 + 64 * 64 + 64 * 3 + 64 + 64 + 3
    assert size(nets, head_only=True) == 65 * 3


def test_fedprox_stays_nearer_to_the_round_than_fedavg():
    w = world()
    nets = nets_of(w, 4)

    def way(recipe: Recipe) -> float:
        moved = train(nets, data_of(w), recipe, np.random.default_rng(0))
        return sum(float(((a - b) ** 2).sum()) for a, b in zip(moved, nets, strict=True))

    assert way(Recipe(5, 0.1, pull=5.0)) < 0.5 * way(Recipe(5, 0.1))


def test_fedproto_draws_embeddings_to_their_prototypes():
    w = world()
    nets = nets_of(w, 4)
    online = np.ones((1, 4), bool)
    data = data_of(w)
    wanted = methods.prototypes(nets, data, online, 3)
    by_hand = np.concatenate(w.learn)
    embeddings = mlp.forward(w.net, w.inputs)[-2]
    ones = by_hand[w.truth[by_hand] == 1]
    assert np.allclose(wanted[0][0, 1], embeddings[ones].mean(0), atol=1e-4)

    def spread(recipe: Recipe) -> float:
        moved = train(nets, data, recipe, np.random.default_rng(0), prototypes=wanted)
        found = [
            forward([layer[k : k + 1] for layer in moved], w.inputs[w.learn[k]][None])[-2][0]
            for k in range(4)
        ]
        labels = [w.truth[w.learn[k]] for k in range(4)]
        pairs = zip(found, labels, strict=True)
        return float(np.mean([((f - wanted[0][0, y]) ** 2).sum(1).mean() for f, y in pairs]))

    assert spread(Recipe(5, 0.05, prototypes=20.0)) < 0.7 * spread(Recipe(5, 0.05))


def test_averaging_by_rows_and_robust_variants():
    rng = np.random.default_rng(3)
    honest = rng.normal(0, 0.1, (5, 40)).astype(np.float32)
    liars = np.full((2, 40), 50, np.float32)
    updates, weights = np.concatenate([honest, liars]), np.arange(1, 8, dtype=np.float32)
    plain = sum(w * u for w, u in zip(weights, updates, strict=True)) / weights.sum()
    assert np.allclose(methods.mean(updates, weights), plain, atol=1e-4)
    for robust in (methods.median, methods.trimmed, methods.krum):
        assert np.abs(robust(updates, weights)).max() < 0.5
    assert any(np.array_equal(methods.krum(updates, weights), row) for row in honest)


def test_averaged_nets_are_the_same_at_all_sites_and_absent_ones_gave_nothing():
    w = world()
    nets = nets_of(w, 4)
    data = data_of(w)
    local = train(nets, data, Recipe(2, 0.1), np.random.default_rng(0))
    online = np.array([[True, True, False, True]])
    counts = data.count.astype(np.float32)
    got = methods.average(local, counts, online, nets, methods.mean, False, False)
    share = counts[[0, 1, 3]] / counts[[0, 1, 3]].sum()
    expected = np.tensordot(share, local[0][[0, 1, 3]], 1)
    for k in range(4):
        assert np.allclose(got[0][k], expected, atol=1e-6)


def test_updates_as_int8_are_half_a_step_off_at_most():
    rng = np.random.default_rng(1)
    stood = rng.normal(size=500).astype(np.float32)
    update = stood + rng.normal(0, 0.2, 500).astype(np.float32)
    step = np.abs(update - stood).max() / 127
    off = np.abs(methods.to_int8(update, stood) - update).max()
    assert 0.2 * step < off <= 0.51 * step


def test_who_is_online():
    half = methods.Rounds("half", [1, 2], 7, 6)
    seen = np.array([half.draw() for _ in range(40)])
    assert (seen.sum(2) == 4).all() and (seen.mean(0) > 0.3).all()
    gone = methods.Rounds("gone", [1, 2], 7, 6)
    assert (gone.gone.sum(1) == 3).all() and not gone.gone[:, 6].any()
    assert np.array_equal(gone.draw(), ~gone.gone)


def test_fetching_takes_from_others_who_answer_what_its_policy_says():
    w = world()
    s = outcome.site(w, w.truth)
    everyone = np.ones(4, bool)
    some = np.array([True, True, False, True])
    for policy in (*outcome.POLICIES, "learner"):
        found = dict(outcome.choose(s, 1, policy, 12, some))
        assert not {1, 2} & {origin for origin, got in found.items() if len(got)}
        for origin, got in found.items():
            assert set(got.tolist()) <= set(w.learn[origin][: outcome.POOL].tolist())
    assert outcome.choose(s, 1, "none", 12, everyone) == []
    fetched = np.concatenate([got for _, got in outcome.choose(s, 1, "all", 12, everyone)])
    assert len(fetched) == len(w.learn[0]) + len(w.learn[2]) + len(w.learn[3])
    for policy in ("label, random", "label, nearest"):
        got = np.concatenate([got for _, got in outcome.choose(s, 1, policy, 12, everyone)])
        assert np.bincount(w.truth[got], minlength=3).tolist() == [4, 4, 4]
    near = np.concatenate([got for _, got in outcome.choose(s, 1, "nearest", 12, everyone)])
    likeness = (s.near[w.learn[1]] @ s.near.T).max(0)
    left = np.setdiff1d(fetched, near)
    assert likeness[near].min() >= likeness[left].max() - 1e-6


def test_the_base_head_says_what_the_net_says():
    w = world()
    base = outcome.base(w)
    agree = base.logits(w.vectors).argmax(1) == mlp.forward(w.net, w.inputs)[-1].argmax(1)
    assert agree.mean() > 0.95


def test_a_share_of_labels_is_wrong():
    w = world()
    assert np.array_equal(given(w, 0.0), w.truth)
    assert (given(w, 0.2) != w.truth).mean() == pytest.approx(0.2, abs=0.08)


def test_statistics():
    mean, low, high = interval([0.1, 0.2, 0.3, 0.4])
    assert low < mean < high and mean == pytest.approx(0.25)
    better = compare([0.5 + 0.01 * i for i in range(20)], [0.4] * 20)
    assert better["better in"] == better["of"] == 20 and better["p"] < 0.001
    assert compare([0.5] * 5, [0.5] * 5)["p"] == 1.0
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_a_plot_is_well_formed_and_shows_what_it_was_given():
    series = [
        Series("a & b", [0.0, 10.0, 1000.0], [0.5, 0.6, 0.7], [0.4] * 3, [0.8] * 3, True),
        Series("c", [1.0], [0.9], texts=["<here>"]),
    ]
    for log in (False, True):
        root = ElementTree.fromstring(Plot("t", "x", "y", series, log=log).svg())
        space = "{http://www.w3.org/2000/svg}"
        texts = [one.text for one in root.iter(space + "text")]
        assert "a & b" in texts and "<here>" in texts
        assert len(list(root.iter(space + "circle"))) == 4 + 2  # points, and the legend's
        for one in root.iter(space + "circle"):
            assert 0 <= float(one.attrib["cx"]) <= 760 and 0 <= float(one.attrib["cy"]) <= 460


def test_profiles_are_the_projection_a_device_makes():
    import _fl_more as more

    from edge_agent.cpython.signer import HostCrypto
    from edge_agent.fingerprint import PURPOSE_PROJECT, Projection

    lean = Projection(HostCrypto(), b"profile\0", PURPOSE_PROJECT, 64, 48, lean=True)
    inputs = np.random.default_rng(0).integers(-128, 128, (5, 48)).astype(np.int8)
    for row, found in zip(inputs.tolist(), more.profile(inputs).tolist(), strict=True):
        expected = [max(-127, min(127, (value + 4) >> 3)) for value in lean.apply(row)]
        assert found == expected


def test_ledger_frames_are_frames_with_what_the_site_believes():
    import _fl_bytes as cost

    from edge_agent import frame as wire

    w = world()
    sealed = cost.frames(w, w.truth, w.learn[0])
    keys = wire.DeviceKeys(cost.CRYPTO, cost.AGENT, bytes(32), 1)
    for frame, row in zip(sealed, w.learn[0].tolist(), strict=True):
        opened = wire.open_frame(frame, lambda agent, generation: keys, wire.UP)
        assert opened.message.outcome.vector == w.vectors[row].tobytes()
        assert opened.message.outcome.label == w.truth[row]
    assert cost.averaging(1000, 30) == 2 * 30 * 4000
    assert cost.averaging(1000, 30, int8=True) == 2 * 30 * 1004


def test_the_evidence_page_says_what_was_measured():
    import json

    import _fl_report as report

    result = json.loads(report.RESULTS.read_text())
    page = report.PAGE.read_text()
    assert report.filled(page, result) == page
    shown = set(re.findall(r"\((img/federated-[\w-]+\.svg)\)", page))
    assert shown == {f"img/{one.name}" for one in (ROOT / "docs" / "img").glob("federated-*.svg")}
