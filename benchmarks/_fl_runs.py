"""The runs: every method on a few seeds' worlds, under one condition, to figures by seed.

A result maps a method to rows of figures, one row a seed: mean, worst and tiny site, recall of
the new classes at sites that had none, present and absent sites where some were gone.
Settings of the rivals were chosen on development seeds (`federated.py --tune`).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from _fl_data import KNOWING, Ints, World, given
from _fl_methods import Rounds, federated, fedproto
from _fl_outcome import (
    POLICIES,
    Site,
    alone,
    choose,
    knn,
    lesson,
    own_scores,
    refit,
    scores,
    site,
)
from _fl_train import Nets, Recipe, Rows, forward, rows, stack, train

from gateway import heads

Bools = npt.NDArray[np.bool_]
Result = dict[str, list[dict[str, float]]]

ROUNDS = 30
LOCAL = Recipe(30, 0.1)
FEDAVG = Recipe(5, 0.1)
FEDPROX = Recipe(5, 0.1, pull=0.01)
FEDPROTO = Recipe(2, 0.05, prototypes=0.1)
HEAD = Recipe(5, 0.1, head_only=True)
AFTER = Recipe(2, 0.05)  # fine-tuning at each site after FedAvg
POOLED = Recipe(30, 0.05)
BUDGET = 98  # outcomes fetched by a site: 14 for each of 7 labels
BUDGETS = (14, 49, 98, 196)
AT_ROUNDS = (1, 2, 3, 5, 10, 20, 30, 100)


class Bench(NamedTuple):
    """Some seeds' worlds, ready for all methods."""

    worlds: list[World]
    sites: list[Site]
    data: Rows
    nets: Nets
    seed: int  # of what methods draw

    @property
    def count(self) -> int:
        return len(self.worlds[0].learn)

    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, 1])

    def rounds(self, kind: str) -> Rounds:
        first = self.worlds[0]
        return Rounds(kind, [w.seed for w in self.worlds], self.count, first.tiny)


def bench(worlds: "list[World]", noise: float = 0.0, labels: "list[Ints] | None" = None) -> Bench:
    labels = labels or [given(w, noise) for w in worlds]
    most = max(len(w.inputs) for w in worlds)
    inputs = np.stack([np.pad(w.inputs, ((0, most - len(w.inputs)), (0, 0))) for w in worlds])
    data = rows(inputs, [w.learn for w in worlds], labels)
    nets = stack([(w.net.weights, w.net.biases) for w in worlds], len(worlds[0].learn))
    sites = [site(w, given_) for w, given_ in zip(worlds, labels, strict=True)]
    return Bench(worlds, sites, data, nets, worlds[0].seed)


# -- figures ---------------------------------------------------------------------------


def figures(b: Bench, guess: "Callable[[int, int], Ints]", gone: Bools) -> "list[dict[str, float]]":
    """guess(seed number, site): labels of that site's test rows."""
    out = []
    for s, world in enumerate(b.worlds):
        right = []
        recall = []
        for k, asked in enumerate(world.test):
            good = guess(s, k) == world.truth[asked]
            right.append(float(good.mean()))
            new = np.isin(world.truth[asked], world.novel)
            if world.novel and k not in KNOWING and new.any():
                recall.append(float(good[new].mean()))
        row = {"mean": float(np.mean(right)), "worst": min(right)}
        if world.tiny is not None:
            row["tiny"] = right[world.tiny]
        if recall:
            row["recall"] = float(np.mean(recall))
        if gone[s].any():
            row["present"] = float(
                np.mean([r for r, g in zip(right, gone[s], strict=True) if not g])
            )
            row["absent"] = float(np.mean([r for r, g in zip(right, gone[s], strict=True) if g]))
        out.append(row)
    return out


def of_nets(b: Bench, nets: Nets, gone: Bools) -> "list[dict[str, float]]":
    def guess(s: int, k: int) -> Ints:
        at = s * b.count + k
        mine = [layer[at : at + 1] for layer in nets]
        world = b.worlds[s]
        found: Ints = forward(mine, world.inputs[world.test[k]][None])[-1][0].argmax(1)
        return found

    return figures(b, guess, gone)


# -- all methods -----------------------------------------------------------------------


def rivals(b: Bench, kind: str, few: bool = False, rounds: int = ROUNDS) -> Result:
    """What does not route outcomes. few: the most important ones only. rounds: of FedAvg."""
    gone = b.rounds(kind).gone
    out: Result = {}

    def note(name: str, nets: Nets) -> None:
        out[name] = of_nets(b, nets, gone)

    note("shipped", b.nets)
    note("local", train(b.nets, b.data, LOCAL, b.rng()))
    curve: dict[int, Nets] = {}

    def keep(turn: int, nets: Nets) -> None:
        if turn in AT_ROUNDS:
            curve[turn] = nets

    federated(b.nets, b.data, FEDAVG, rounds, b.rounds(kind), b.rng(), every=keep)
    averaged = curve[ROUNDS]
    for turn, nets in curve.items():
        note(f"fedavg, {turn} rounds", nets)
    out["fedavg"] = out.pop(f"fedavg, {ROUNDS} rounds")
    note("fedavg + local", train(averaged, b.data, AFTER, b.rng()))
    curve.clear()
    federated(b.nets, b.data, HEAD, ROUNDS, b.rounds(kind), b.rng(), every=keep)
    for turn, nets in curve.items():
        note(f"fedavg head, {turn} rounds", nets)
    out["fedavg head"] = out.pop(f"fedavg head, {ROUNDS} rounds")
    if few:
        return out
    note(
        "fedavg head int8",
        federated(b.nets, b.data, HEAD, ROUNDS, b.rounds(kind), b.rng(), int8=True),
    )
    note("fedprox", federated(b.nets, b.data, FEDPROX, ROUNDS, b.rounds(kind), b.rng()))
    note("fedproto", fedproto(b.nets, b.data, FEDPROTO, ROUNDS, b.rounds(kind), b.rng()))
    out["pooled"] = of_nets(b, pooled(b, gone), gone)
    return out


def pooled(b: Bench, gone: Bools) -> Nets:
    """The bound: all raw data of the sites present in one place, labels as given."""
    learn = [
        [np.concatenate([r for r, g in zip(w.learn, gone[s], strict=True) if not g])]
        for s, w in enumerate(b.worlds)
    ]
    data = rows(b.data.inputs, learn, [s.labels for s in b.sites])
    one = [layer[:: b.count] for layer in b.nets]
    return [np.repeat(layer, b.count, 0) for layer in train(one, data, POOLED, b.rng())]


def reachable(b: Bench, kind: str) -> Bools:
    """(seeds, sites): whose gateway answers in the moment in which outcomes are fetched."""
    return b.rounds(kind).draw()


def outcomes(
    b: Bench,
    kind: str,
    receivers: "tuple[str, ...]",
    budget: int = BUDGET,
    policies: "tuple[str, ...]" = POLICIES,
) -> Result:
    """Outcome routing, one exchange: every policy with these receivers."""
    gone = b.rounds(kind).gone
    there = reachable(b, kind)
    out: Result = {}
    for policy in policies:
        out |= {
            f"outcome, {policy}: {receiver}": found
            for receiver, found in fetching(b, policy, budget, there, gone, receivers).items()
        }
    return out


def fetching(
    b: Bench, policy: str, budget: int, there: Bools, gone: Bools, receivers: "tuple[str, ...]"
) -> Result:
    """receiver -> figures."""
    guesses: dict[str, dict[tuple[int, int], Ints]] = {r: {} for r in receivers}
    for s, here in enumerate(b.sites):
        for k, asked in enumerate(here.world.test):
            found = choose(here, k, policy, budget, there[s])
            known = np.concatenate([here.world.learn[k], *(rows for _, rows in found)])
            votes = knn(here, known, asked)
            guesses_here = {"knn": votes}
            if "refit" in receivers or "both" in receivers:
                said = scores(here, refit(here, k, found), asked)
                guesses_here |= {"refit": said, "both": said + votes}
            for receiver in receivers:
                guesses[receiver][s, k] = guesses_here[receiver].argmax(1)
    return {r: figures(b, lambda s, k, g=g: g[s, k], gone) for r, g in guesses.items()}


def lessons(
    b: Bench, kind: str, budget: int = BUDGET, asks: int = 1, devices: bool = True
) -> Result:
    """The product as it is: gateway.learner's plan, guards and acceptance; and devices alone.

    asks: moments at which others were asked; what any of them brought is used.
    """
    who = b.rounds(kind)
    draws = [who.draw() for _ in range(asks)]
    there = np.logical_or.reduce(draws)
    kept: dict[tuple[int, int], Ints] = {}
    table: dict[tuple[int, int], Ints] = {}
    for s, here in enumerate(b.sites):
        for k, asked in enumerate(here.world.test):
            found = choose(here, k, "learner", budget, there[s])
            taught = lesson(here, k, found)
            said = own_scores(here, asked)
            if taught.verdict.accepted:
                said = scores(here, heads.compiled(taught.rows), asked)
            kept[s, k] = said.argmax(1)
            if devices:
                table[s, k] = alone(here, k, there[s], asked)
    out = {"learner": figures(b, lambda s, k: kept[s, k], who.gone)}
    if devices:
        out["device alone"] = figures(b, lambda s, k: table[s, k], who.gone)
    return out
