"""Further runs: many sites, a rare case, liars, sites with different models.

Villages: 2 to 100 sites; who found whom. A link is a pair of sites of which one learnt from the
other; N (N - 1) / 2 are possible.

Liars: 1 to 3 of 7 sites call every class by the name of the next. Figures are of honest sites.

Models: the vector is the profile of features itself, so that sites may run anything: a
perceptron, the convolutional network, a decision tree. Weights of different models cannot be
averaged; what can be is a linear layer over the profile, which is what the rival here does.
With new classes, models that know them from training are not asked about them.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from _fl_data import SITES, Floats, Int8, Ints, given, recordings, village, watch
from _fl_data import watch_encoder as encoder
from _fl_methods import Rounds, federated, krum, mean, median, trimmed
from _fl_outcome import Site, choose, lesson, scores
from _fl_runs import (
    BUDGET,
    FEDAVG,
    LOCAL,
    ROUNDS,
    Bench,
    Bools,
    Result,
    bench,
    fetching,
    figures,
    lessons,
    of_nets,
)
from _fl_train import Recipe, forward, rows, stack, train

from edge_agent.cpython.signer import HostCrypto
from edge_agent.fingerprint import PURPOSE_PROJECT, VECTOR_BYTES, Projection
from gateway import heads
from gateway.learner import Lesson
from models.windows import cut, stats8, to_int8

ROOT = Path(__file__).resolve().parents[1]
VILLAGES = (2, 3, 5, 7, 10, 20, 50, 100)
LIARS = (0, 1, 2, 3)


# -- many sites ------------------------------------------------------------------------


def villages(scenario: str, seeds: "list[int]", quick: bool) -> "dict[str, Result]":
    """condition -> method -> figures; links among those of the learner."""
    count = int(scenario)
    b = bench([village(seed, count) for seed in seeds])
    everyone = Rounds("all", seeds, count, None)
    gone = everyone.gone
    out: Result = {"shipped": of_nets(b, b.nets, gone)}
    out["local"] = of_nets(b, train(b.nets, b.data, LOCAL, b.rng()), gone)
    averaged = federated(b.nets, b.data, FEDAVG, ROUNDS, everyone, b.rng())
    out["fedavg"] = of_nets(b, averaged, gone)
    out |= lessons(b, "all", devices=False)
    for s, here in enumerate(b.sites):
        pairs, asked, fetched = set(), 0, 0
        for k in range(count):
            found = choose(here, k, "learner", BUDGET, np.ones(count, bool))
            origins = [origin for origin, got in found if len(got)]
            pairs |= {frozenset((k, origin)) for origin in origins}
            asked += len(origins)
            fetched += sum(len(got) for _, got in found)
        out["learner"][s] |= {
            "links": float(len(pairs)),
            "origins asked": asked / count,
            "fetched": fetched / count,
        }
    return {f"{count} sites": out}


# -- a rare case -----------------------------------------------------------------------


def rare(scenario: str, seeds: "list[int]", quick: bool) -> "dict[str, Result]":
    b = bench([watch(seed, "rare") for seed in seeds])
    who = Rounds("all", seeds, b.count, b.worlds[0].tiny)
    out: Result = {"shipped": of_nets(b, b.nets, who.gone)}

    def keep(turn: int, nets: "list[Floats]") -> None:
        if turn in (1, 5, ROUNDS):
            out[f"fedavg, {turn} rounds"] = of_nets(b, nets, who.gone)

    federated(b.nets, b.data, FEDAVG, ROUNDS, who, b.rng(), every=keep)
    for policy in ("random", "nearest", "label, nearest"):
        all_ = np.ones((len(seeds), b.count), bool)
        found = fetching(b, policy, BUDGET, all_, who.gone, ("refit",))
        out[f"outcome, {policy}: refit"] = found["refit"]
    out |= lessons(b, "all")
    for s, here in enumerate(b.sites):
        got = []
        for k in range(b.count):
            if k not in (0, 2, 4):
                found = choose(here, k, "learner", BUDGET, np.ones(b.count, bool))
                new = [np.isin(here.labels[r], here.world.novel).sum() for _, r in found]
                got.append(sum(new))
        out["learner"][s]["of the class fetched"] = float(np.mean(got))
    return {"rare": out}


# -- liars -----------------------------------------------------------------------------


def liars(scenario: str, seeds: "list[int]", quick: bool) -> "dict[str, Result]":
    """scenario: "iid 2" is two liars of seven."""
    world, count = scenario.split()
    worlds = [watch(seed, world) for seed in seeds]
    labels, bad = [], np.zeros((len(seeds), 7), bool)
    for s, w in enumerate(worlds):
        rng = np.random.default_rng([w.seed, 13])
        bad[s, rng.permutation(6)[: int(count)]] = True  # never the tiny site
        mine = given(w, 0.0).copy()
        for k in np.flatnonzero(bad[s]):
            mine[w.learn[k]] = (mine[w.learn[k]] + 1) % w.classes
        labels.append(mine)
    b = bench(worlds, labels=labels)
    who = Rounds("all", seeds, 7, 6)
    out: Result = {"shipped": of_nets(b, b.nets, bad)}
    out["local"] = of_nets(b, train(b.nets, b.data, LOCAL, b.rng()), bad)
    for name, how in (("", mean), (" median", median), (" trimmed", trimmed), (" krum", krum)):
        nets = federated(b.nets, b.data, FEDAVG, ROUNDS, who, b.rng(), how=how)
        out["fedavg" + name] = of_nets(b, nets, bad)
    everyone = np.ones_like(bad)
    found = fetching(b, "label, nearest", BUDGET, everyone, bad, ("refit",))
    out["refit without guards"] = found["refit"]
    kept: dict[tuple[int, int], Ints] = {}
    caught = np.zeros((len(seeds), 2))
    for s, here in enumerate(b.sites):
        for k, asked in enumerate(here.world.test):
            got = choose(here, k, "learner", BUDGET, everyone[s])
            taught = lesson(here, k, got)
            kept[s, k] = _after(here, taught, asked)
            if not bad[s, k]:
                for source, trust in taught.trust.items():
                    caught[s, int(bad[s, source - 1])] += trust.quarantined
    out["learner"] = figures(b, lambda s, k: kept[s, k], bad)
    honest = (~bad).sum(1)
    for s, row in enumerate(out["learner"]):
        # Shares of the pairs (honest asker, other origin).
        row["honest quarantined"] = float(caught[s, 0] / (honest[s] * (honest[s] - 1)))
        if bad[s].any():
            row["liars quarantined"] = float(caught[s, 1] / (honest[s] * bad[s].sum()))
    for rows_ in out.values():
        for row in rows_:
            row["honest"] = row.get("present", row["mean"])
    return {f"{world}, {count} liars": out}


def _after(here: Site, taught: Lesson, asked: Ints) -> Ints:
    if taught.verdict.accepted:
        said = scores(here, heads.compiled(taught.rows), asked)
    else:
        said = here.world.scores[asked]
    found: Ints = said.argmax(1)
    return found


# -- different models ------------------------------------------------------------------

KINDS = ("perceptron", "convolutional", "tree")


@cache
def _signs() -> npt.NDArray[np.int64]:
    """(64, 48) the fixed projection of a domain whose vectors are 48 features."""
    projection = Projection(HostCrypto(), b"profile\0", PURPOSE_PROJECT, VECTOR_BYTES, 48)
    return np.array([projection.apply(row) for row in np.eye(48, dtype=int).tolist()]).T


def profile(inputs: Int8) -> Int8:
    """Domain.vector with multiplier 1 and shift 3; a test compares the two."""
    values = (inputs.astype(np.int64) @ _signs().T + 4) >> 3
    return np.clip(values, -127, 127).astype(np.int8)


@cache
def _raw() -> npt.NDArray[np.int64]:
    """Windows of people 4-10: left arms by person, then right arms, as in _fl_data.watch."""
    parts = [
        cut([r for r in recordings() if r.person == person and r.side == side])[0]
        for side in (0, 1)
        for person in SITES
    ]
    return np.concatenate(parts)


@cache
def _convolutional() -> npt.NDArray[np.uint8]:
    """What the shipped convolutional network says of _raw()."""
    import json

    from _fl_data import device_scores

    p = json.loads((ROOT / "models" / "watch_cnn_features.json").read_text())
    x = to_int8(_raw(), np.array(p["offset"]), np.array(p["mul"]), p["shift"])[:, None]
    return device_scores((ROOT / "models" / "watch_cnn_int8.tflite").read_bytes(), x)


def _tree(seed: int, novel: "tuple[int, ...]") -> npt.NDArray[np.uint8]:
    """What a decision tree says of all rows; it learnt from people 1-3."""
    from sklearn.tree import DecisionTreeClassifier

    known = [r for r in recordings() if r.person <= 3 and r.label not in novel]
    windows, labels, _ = cut(known)
    tree = DecisionTreeClassifier(min_samples_leaf=10, random_state=seed)
    tree.fit(stats8(windows), labels)
    out = np.zeros((len(_raw()), 7))
    out[:, tree.classes_] = tree.predict_proba(stats8(_raw()))
    return np.rint(255 * out).astype(np.uint8)


def models(scenario: str, seeds: "list[int]", quick: bool) -> "dict[str, Result]":
    """Figures are of each kind of model; `mean` of all sites."""
    worlds, kinds = [], []
    for seed in seeds:
        w = watch(seed, scenario)
        _, _, _, _, step = encoder(seed, w.novel)
        vectors = profile(np.rint(w.inputs / step).astype(np.int8))
        said = {"perceptron": w.scores, "tree": _tree(seed, w.novel)}
        said["convolutional"] = _convolutional().copy()
        for table in said.values():
            table[:, [c for c in range(7) if c not in w.novel]] |= 1  # of nothing else it is sure
            table[:, list(w.novel)] = 0
        kind = [KINDS[(k + seed) % 3] for k in range(7)]
        mine = np.zeros_like(w.scores)
        for k in range(7):
            for part in (w.learn[k], w.test[k]):
                mine[part] = said[kind[k]][part]
        worlds.append(w._replace(vectors=vectors, scores=mine))
        kinds.append(kind)
    b = bench(worlds)
    b = b._replace(sites=[one._replace(base=None) for one in b.sites])
    gone = np.zeros((len(seeds), 7), bool)
    out: Result = {"own model": _by_kind(b, kinds, lambda s, k: _own(b, s, k), gone)}
    linear = _linear(b)
    out["fedavg of a linear layer"] = _by_kind(b, kinds, lambda s, k: linear[s, k], gone)
    for name, policy in (("refit, own outcomes", "none"), ("learner", "learner")):
        kept = {}
        for s, here in enumerate(b.sites):
            for k, asked in enumerate(here.world.test):
                found = choose(here, k, policy, BUDGET, np.ones(7, bool))
                kept[s, k] = _after(here, lesson(here, k, found), asked)
        out[name] = _by_kind(b, kinds, lambda s, k, g=kept: g[s, k], gone)
    return {f"models, {scenario}": out}


def _own(b: Bench, s: int, k: int) -> Ints:
    world = b.worlds[s]
    found: Ints = world.scores[world.test[k]].argmax(1)
    return found


def _linear(b: Bench) -> "dict[tuple[int, int], Ints]":
    """A linear layer over the profile, averaged in rounds."""
    seeds = [w.seed for w in b.worlds]
    x = [w.vectors.astype(np.float32) / 32 for w in b.worlds]
    data = rows(np.stack(x), [w.learn for w in b.worlds], [s.labels for s in b.sites])
    nothing = ([np.zeros((7, 64), np.float32)], [np.zeros(7, np.float32)])
    nets = stack([nothing] * len(seeds), 7)
    who = Rounds("all", seeds, 7, 6)
    nets = federated(nets, data, Recipe(5, 0.1), ROUNDS, who, b.rng())
    return {
        (s, k): forward([n[s * 7 + k][None] for n in nets], x[s][w.test[k]][None])[-1][0].argmax(1)
        for s, w in enumerate(b.worlds)
        for k in range(7)
    }


def _by_kind(
    b: Bench, kinds: "list[list[str]]", guess: "Callable[[int, int], Ints]", gone: Bools
) -> "list[dict[str, float]]":
    out = figures(b, guess, gone)
    for s, row in enumerate(out):
        world = b.worlds[s]
        for kind in KINDS:
            right = [
                float((guess(s, k) == world.truth[world.test[k]]).mean())
                for k in range(7)
                if kinds[s][k] == kind
            ]
            row[kind] = float(np.mean(right))
    return out
