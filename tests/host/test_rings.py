"""Rings of agents that pass outcomes on to each other: nobody gets surer of hearing himself.

Every agent sees the very same situation (what is less alike counts less and fades by itself),
and is sure to a degree of its own each time: fresh evidence. Its gateway hands it outcomes of its
neighbours in the ring, as a gateway would: weight is confidence, and nothing that has one of the
agent's own outcomes among its ancestors. Agents are the device's own code: `Neighbours`, `vote`.

With lineage off, as if parents and depth were not recorded, what an agent once said comes
back as somebody else's evidence, for ever.
"""

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.synthesis import DEPTH_MAX, Neighbour, Neighbours, vote

STEPS = 10_000
LABELS = 3
SITUATION = bytes(range(30, 94))
TOLD = 2  # outcomes that a gateway hands over before each decision
TABLE, TTL = 4, 10  # small, to be quick
RECENT = 40  # outcomes it chooses from
FRESH = (60, 150)  # confidence of fresh evidence, from .. to


class Said:
    """An outcome in the ring. leaf: the surest fresh evidence that it goes back to."""

    def __init__(self, number, agent, own, found, parents):
        self.id = number.to_bytes(16, "big")
        self.number = number
        self.agent = agent
        self.own = own
        self.label, self.confidence, self.depth = found.label, found.confidence, found.depth
        self.parents = parents
        self.leaf = max([max(own), *(p.leaf for p in parents)])
        # Whose outcomes are in it, and the oldest of them: what a gateway learns by walking.
        self.agents = frozenset([agent]).union(*(p.agents for p in parents))
        self.oldest = min([number, *(p.oldest for p in parents)])


class Ring:
    """`size` agents; each hears those `reach` places around it."""

    def __init__(self, size, seed, lineage=True, reach=1, fresh=FRESH, truth=1):
        self.rng = random.Random(seed)
        self.size, self.lineage, self.reach, self.fresh, self.truth = (
            size, lineage, reach, fresh, truth,
        )  # fmt: skip
        self.tables = [Neighbours(TABLE, ttl_h=TTL) for _ in range(size)]
        self.recent = [[] for _ in range(size)]
        self.known = {}
        self.number = 0

    def opinion(self):
        """Scores: what the model alone says of the situation."""
        top = self.rng.randint(*self.fresh)
        rest = 255 - top
        scores = [rest // 2] * LABELS
        # Weak evidence is also often wrong.
        label = self.truth if self.rng.random() < 0.8 else self.rng.randrange(LABELS)
        scores[label] = top
        return bytes(scores)

    def may_tell(self, said, agent):
        return not self.lineage or agent not in said.agents

    def step(self):
        self.number += 1
        agent = self.rng.randrange(self.size)
        table, hour = self.tables[agent], self.number // 20
        around = [(agent + d) % self.size for d in range(-self.reach, self.reach + 1) if d]
        pool = [s for a in set(around) - {agent} for s in self.recent[a] if self.may_tell(s, agent)]
        for said in self.rng.sample(pool, min(TOLD, len(pool))):
            depth, flags = (said.depth, 2 * bool(said.parents)) if self.lineage else (0, 0)
            near = Neighbour(said.id, SITUATION, said.label, said.confidence, flags, depth)
            table.add(near, hour)
        scores = self.opinion()
        found = vote(SITUATION, scores, table, hour)
        parents = [self.known[p] for p in found.parents]
        said = Said(self.number, agent, scores, found, parents)
        self.known[said.id] = said
        self.recent[agent] = [*self.recent[agent], said][-RECENT:]
        return said

    def run(self, steps=STEPS):
        return [self.step() for _ in range(steps)]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


@cache
def story(size, lineage, reach=1):
    return Ring(size, size, lineage, reach).run()


@pytest.mark.parametrize(("size", "reach"), [(3, 1), (7, 1), (12, 3)])
def test_with_lineage_confidence_does_not_inflate(size, reach):
    told = story(size, True, reach)
    assert sum(bool(s.parents) for s in told) > STEPS // 2
    for said in told:
        # Never surer than the surest fresh evidence it goes back to, and never long-winded.
        assert said.confidence <= said.leaf <= FRESH[1]
        assert said.depth <= DEPTH_MAX + 1
        assert said.depth == max([p.depth + 1 for p in said.parents], default=0)
        # None of its own outcomes came back to it.
        assert not any(said.agent in p.agents for p in said.parents)
    # As sure at the end as soon after the beginning, and everything goes back to fresh evidence.
    early = mean(s.confidence for s in told[STEPS // 10 : STEPS // 2])
    late = mean(s.confidence for s in told[STEPS // 2 :])
    assert abs(late - early) < 6
    assert max(s.number - s.oldest for s in told) < STEPS // 2


@pytest.mark.parametrize("size", [3, 7])
def test_without_lineage_it_does(size):
    """The test above could pass because nothing inflates here."""
    told = story(size, False)
    kept = story(size, True)
    tail = STEPS // 10
    inflated = mean(s.confidence for s in told[-tail:])
    sober = mean(s.confidence for s in kept[-tail:])
    assert inflated > sober + 8
    # Everybody is as sure as anybody ever was.
    assert inflated > FRESH[1] - 1
    # Own opinions from thousands of steps ago still count as somebody else's evidence.
    assert max(s.number - s.oldest for s in told) > STEPS // 2
    assert mean(s.agent in p.agents for s in told[-tail:] for p in s.parents) > 0.9


def test_a_ring_forgets_what_is_no_longer_so():
    """Evidence becomes weak: with lineage all are as unsure as it is, without they are not."""
    ends = {}
    for lineage in (True, False):
        ring = Ring(5, 3, lineage, fresh=(150, 250))
        ring.run(STEPS // 2)
        ring.fresh = (86, 100)
        told = ring.run(STEPS // 2)[-STEPS // 10 :]
        ends[lineage] = mean(s.confidence for s in told)
        if lineage:
            assert max(s.confidence for s in told) <= 100
    assert ends[False] > ends[True] + 20


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(0, 2**32), st.integers(1, 4), st.integers(0, 200))
def test_any_ring(size, seed, reach, low):
    for said in Ring(size, seed, reach=reach, fresh=(low, low + 55)).run(400):
        assert said.confidence <= said.leaf
        assert said.depth <= DEPTH_MAX + 1
        assert len(said.parents) <= 2
