"""Outcome routing's part: what a gateway fetches, and what it makes of it.

A site's gateway has all outcomes of its own device and fetches some of those that the other
sites announce (at most POOL each). Policies of fetching `budget` outcomes:

    none               the site's own outcomes only
    random             of all that others announce
    nearest            to any outcome of its own, whatever the label
    label, random      equally many of each label
    label, nearest     of each label those nearest to any outcome of its own
    all                everything announced
    learner            as gateway.learner plans it: more of what is scarce, wrong or unsure here,
                       nearest to a few outcomes of its own that it asks with

Receivers:

    knn       seven nearest of own and fetched vote; the model is not asked
    refit     the last layer fitted anew by gateway.heads, run in the device's integers
    both      scores of refit and votes of knn added up
    learner   the whole lesson of gateway.learner: guards, refit, acceptance
    alone     no refit: the device has 16 of the fetched as neighbours (edge_agent.synthesis)
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from _fl_data import Floats, Ints, World
from _fl_train import forward

from edge_agent.synthesis import CONFIRMED, Neighbour, Neighbours, vote
from gateway import heads, learner

Bools = npt.NDArray[np.bool_]

POOL = 64
VOTERS = 7
SHARPNESS = 20.0
NEIGHBOURS = 16  # what a device keeps unless told otherwise
QUESTIONS = 4  # vectors that the learner asks with, for each label
UNSURE = 128  # scores below
POLICIES = ("none", "random", "nearest", "label, random", "label, nearest", "all")


class Site(NamedTuple):
    """What a gateway knows about one world before it asks others."""

    world: World
    labels: Ints  # as believed, all rows of the world
    near: Floats  # (n, 64) unit vectors
    base: heads.FloatHead
    guess: Ints  # what the model says, all rows


def site(world: World, labels: Ints) -> Site:
    x = world.vectors.astype(np.float32)
    near = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    return Site(world, labels, near, base(world), world.scores.argmax(1))


def base(world: World) -> heads.FloatHead:
    """The model's own last layer, for vectors."""
    net = [layer[None] for layer in (*world.net.weights, *world.net.biases)]
    exact = forward(net, world.inputs[None])[-2][0]
    v = world.vectors.astype(np.float32)
    unit = float((exact * v).sum() / (v * v).sum())
    return heads.FloatHead(
        world.net.weights[-1].astype(np.float64) * unit, world.net.biases[-1].astype(np.float64)
    )


def announced(world: World, pool: int = POOL) -> "list[Ints]":
    """Rows that each site's gateway announces: its first ones."""
    return [rows[:pool] for rows in world.learn]


def choose(
    s: Site, k: int, policy: str, budget: int, reachable: Bools, pool: int = POOL
) -> "list[tuple[int, Ints]]":
    """(origin, rows) that site k fetches."""
    offers = [
        (origin, rows)
        for origin, rows in enumerate(announced(s.world, pool))
        if origin != k and reachable[origin] and len(rows)
    ]
    if policy == "none" or not offers or not len(s.world.learn[k]) or budget <= 0:
        return []
    there = np.concatenate([rows for _, rows in offers])
    origin = np.concatenate([np.full(len(rows), which) for which, rows in offers])
    rng = np.random.default_rng([s.world.seed, k, 3])
    if policy == "all":
        chosen = np.arange(len(there))
    elif policy == "random":
        chosen = rng.permutation(len(there))[:budget]
    elif policy == "learner":
        chosen = _planned(s, k, there, budget)
    else:
        likeness = (s.near[s.world.learn[k]] @ s.near[there].T).max(0)
        order = np.argsort(-likeness, kind="stable")
        if policy == "nearest":
            chosen = order[:budget]
        else:
            if policy == "label, random":
                order = rng.permutation(len(there))
            # Labels take turns until the budget is spent.
            turn = np.zeros(len(there), np.int64)
            for c in range(s.world.classes):
                mine = order[s.labels[there[order]] == c]
                turn[mine] = np.arange(len(mine))
            chosen = order[np.argsort(turn[order], kind="stable")][:budget]
    return [(which, there[chosen[origin[chosen] == which]]) for which, _ in offers]


def local(s: Site, k: int) -> heads.Evidence:
    rows = s.world.learn[k]
    weight = learner.weigh(True, 255, 0.0)
    return heads.evidence(s.world.vectors[rows], s.labels[rows], weight, heads.HERE, s.guess[rows])


def fetched(s: Site, found: "list[tuple[int, Ints]]") -> heads.Evidence:
    weight = learner.weigh(True, 255, 0.0, foreign=True)
    parts = [
        heads.evidence(s.world.vectors[rows], s.labels[rows], weight, 1 + origin)
        for origin, rows in found
    ]
    return heads.join(heads.nothing(), *parts)


def _planned(s: Site, k: int, there: Ints, budget: int) -> Ints:
    mine = local(s, k)
    unsure = s.world.scores[s.world.learn[k]].max(1) < UNSURE
    plan = learner.plan_fetch(*learner.needs(mine, unsure, s.world.classes), budget * learner.COST)
    first = unsure | (mine.old != mine.labels)
    chosen = []
    for label, count in plan.items():
        questions = learner.exemplars(mine, label, first, QUESTIONS).astype(np.float32)
        rows = np.flatnonzero(s.labels[there] == label)
        likeness = (s.near[there[rows]] @ questions.T) / np.linalg.norm(questions, axis=1)
        # Every question brings its own nearest in turn, as answers to queries come.
        place = np.argsort(np.argsort(-likeness, 0, kind="stable"), 0, kind="stable").min(1)
        chosen.append(rows[np.argsort(place, kind="stable")[:count]])
    return np.concatenate(chosen) if chosen else np.zeros(0, np.int64)


# -- receivers -------------------------------------------------------------------------


def refit(s: Site, k: int, found: "list[tuple[int, Ints]]") -> heads.Head:
    everything = heads.join(local(s, k), fetched(s, found))
    head = heads.fit(s.base, everything, s.world.classes)
    return heads.compiled(heads.quantise(head, 1, b""))


def lesson(s: Site, k: int, found: "list[tuple[int, Ints]]") -> learner.Lesson:
    """What gateway.learner makes of it; the model itself is in force."""
    return learner.learn(s.base, s.base, local(s, k), fetched(s, found), s.world.classes, 1, b"")


def own_scores(s: Site, asked: Ints) -> Floats:
    return s.world.scores[asked].astype(np.float32) / 255


def scores(s: Site, head: heads.Head, asked: Ints) -> Floats:
    return heads.scores(head, s.world.vectors[asked]).astype(np.float32) / 255


def knn(s: Site, known: Ints, asked: Ints) -> Floats:
    """(asked, classes) votes of the nearest, adding up to 1."""
    votes = np.zeros((len(asked), s.world.classes), np.float32)
    if not len(known):
        return votes
    likeness = s.near[asked] @ s.near[known].T
    best = np.argsort(-likeness, 1)[:, :VOTERS]
    weight = np.exp((np.take_along_axis(likeness, best, 1) - 1) * SHARPNESS)
    for j in range(best.shape[1]):
        np.add.at(votes, (np.arange(len(asked)), s.labels[known[best[:, j]]]), weight[:, j])
    return votes / np.maximum(votes.sum(1, keepdims=True), 1e-9)


def alone(s: Site, k: int, reachable: Bools, asked: Ints) -> Ints:
    """What a device concludes with a table of neighbours, in its own integers."""
    table = Neighbours(NEIGHBOURS)
    for _, rows in choose(s, k, "label, nearest", NEIGHBOURS, reachable):
        for row in rows.tolist():
            name = int(row).to_bytes(16, "big")
            vector = s.world.vectors[row].tobytes()
            table.add(Neighbour(name, vector, int(s.labels[row]), 255, CONFIRMED, 0), 0)
    found = [
        vote(s.world.vectors[row].tobytes(), s.world.scores[row].tobytes(), table).label
        for row in asked.tolist()
    ]
    return np.array(found, np.int64)
