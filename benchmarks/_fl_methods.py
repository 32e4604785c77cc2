"""The rivals: averaging of weights in rounds, and what needs no exchange.

Each takes a stack of nets (see _fl_train), says who is online in each round, and gives a net
for every site. FedAvg (McMahan et al. 2017): sites train from the global net, the server
averages by number of rows. FedProx (Li et al. 2020) adds a pull towards the round's start.
FedProto (Tan et al. 2022) exchanges mean embeddings of classes instead of weights. Head only:
the encoder is frozen, as it is with outcome routing. Robust variants replace the mean
(Yin et al. 2018: median, trimmed mean; Blanchard et al. 2017: Krum).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from _fl_train import Floats, Nets, Recipe, Rows, forward, train

Bools = npt.NDArray[np.bool_]
Mean = Callable[[Floats, Floats], Floats]


# -- aggregation: updates (sites, parameters), weights (sites,) -> (parameters,) ---------


def mean(updates: Floats, weights: Floats) -> Floats:
    """FedAvg's: by number of rows."""
    out: Floats = (weights / weights.sum()) @ updates
    return out


def median(updates: Floats, weights: Floats) -> Floats:
    out: Floats = np.median(updates, 0).astype(np.float32)
    return out


def trimmed(updates: Floats, weights: Floats, cut: int = 2) -> Floats:
    """Without the `cut` largest and smallest of each number."""
    cut = min(cut, (len(updates) - 1) // 2)
    out: Floats = np.sort(updates, 0)[cut : len(updates) - cut].mean(0)
    return out


def krum(updates: Floats, weights: Floats, bad: int = 2) -> Floats:
    """The update that lies closest to its n - bad - 2 nearest others."""
    square = ((updates[:, None] - updates[None]) ** 2).sum(-1)
    near = max(1, len(updates) - bad - 2)
    scores = np.sort(square, 1)[:, 1 : near + 1].sum(1)
    return updates[int(scores.argmin())]


def to_int8(update: Floats, stood: Floats) -> Floats:
    """What arrives of an update sent as int8: one step size for all of its numbers."""
    change = update - stood
    step = np.abs(change).max() / 127 or 1.0
    return (stood + np.rint(change / step) * step).astype(np.float32)


# -- rounds ----------------------------------------------------------------------------


class Rounds:
    """Who is online when. kind: all, half (each round another half), gone (3 of 7, for good)."""

    def __init__(self, kind: str, seeds: "list[int]", sites: int, tiny: "int | None") -> None:
        self.kind, self.sites = kind, sites
        self.rngs = [np.random.default_rng([seed, 11]) for seed in seeds]
        self.gone = np.zeros((len(seeds), sites), bool)
        if kind == "gone":
            rest = [k for k in range(sites) if k != tiny]
            for s, rng in enumerate(self.rngs):
                self.gone[s, rng.choice(rest, 3, False)] = True

    def draw(self) -> Bools:
        """(seeds, sites): who takes part in the next round."""
        if self.kind == "half":
            out = np.zeros_like(self.gone)
            for s, rng in enumerate(self.rngs):
                out[s, rng.permutation(self.sites)[: (self.sites + 1) // 2]] = True
            return out
        return ~self.gone


def average(
    nets: Nets, counts: Floats, online: Bools, last: Nets, how: Mean, head_only: bool, int8: bool
) -> Nets:
    """The global net of each seed, for each of its sites. last: what the round began with."""
    depth = len(nets) // 2
    chosen = (depth - 1, 2 * depth - 1) if head_only else tuple(range(2 * depth))
    seeds, sites = online.shape
    out = list(last)
    flat = np.concatenate([nets[k].reshape(len(nets[k]), -1) for k in chosen], 1)
    old = np.concatenate([last[k].reshape(len(last[k]), -1) for k in chosen], 1)
    new = old.copy()
    for s in range(seeds):
        here = slice(s * sites, (s + 1) * sites)
        who = online[s] & (counts[here] > 0)
        if not who.any():
            continue
        updates = flat[here][who]
        if int8:
            updates = np.stack([to_int8(u, old[s * sites]) for u in updates])
        new[here] = how(updates, counts[here][who])
    at = 0
    for k in chosen:
        width = int(np.prod(nets[k].shape[1:]))
        out[k] = new[:, at : at + width].reshape(nets[k].shape).copy()
        at += width
    return out


def federated(
    nets: Nets,
    data: Rows,
    recipe: Recipe,
    rounds: int,
    who: Rounds,
    rng: np.random.Generator,
    how: Mean = mean,
    int8: bool = False,
    every: "Callable[[int, Nets], None] | None" = None,
) -> Nets:
    """Averaging in rounds. A site that was offline has the newest net when it is back.
    every(round, nets): called after each."""
    for turn in range(rounds):
        online = who.draw()
        local = train(nets, data, recipe, rng, online.reshape(-1))
        counts = data.count.astype(np.float32)
        nets = average(local, counts, online, nets, how, recipe.head_only, int8)
        if every:
            every(turn + 1, nets)
    return nets


def fedproto(
    nets: Nets,
    data: Rows,
    recipe: Recipe,
    rounds: int,
    who: Rounds,
    rng: np.random.Generator,
) -> Nets:
    """Prototypes are exchanged, nets stay at their sites and end up different."""
    classes = nets[-1].shape[-1]
    wanted: tuple[Floats, Bools] | None = None
    for _ in range(rounds):
        online = who.draw()
        nets = train(nets, data, recipe, rng, online.reshape(-1), wanted)
        wanted = prototypes(nets, data, online, classes)
    return nets


def prototypes(nets: Nets, data: Rows, online: Bools, classes: int) -> "tuple[Floats, Bools]":
    """(b, classes, width) weighted means over the sites online, and which classes they have."""
    seeds, sites = online.shape
    seed = np.repeat(np.arange(seeds), sites)[:, None]
    layers = forward(nets, data.inputs[seed, data.at])[-2]
    total = np.zeros((seeds, classes, layers.shape[-1]), np.float32)
    number = np.zeros((seeds, classes), np.float32)
    for b in range(seeds * sites):
        if online[b // sites, b % sites]:
            n = data.count[b]
            np.add.at(total[b // sites], data.given[b, :n], layers[b, :n])
            np.add.at(number[b // sites], data.given[b, :n], 1)
    means = total / np.maximum(number, 1)[:, :, None]
    return np.repeat(means, sites, 0), np.repeat(number > 0, sites, 0)
