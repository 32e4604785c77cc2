"""Fingerprints of agents: who is alike, what is told apart, when it is announced."""

import hashlib

import numpy as np
import pytest
from codebook_kit import codebook

from gateway.agents import ENOUGH, LABELS_KEPT, Agent, Agents, alike, signs
from gateway.announce import ANNOUNCE, DAY_S, RENEW, WITHDRAW
from gateway.routing_db import RoutingDb
from gateway.sketch import INT4, INT8, SIGN

BOOK = codebook(INT4)
NOW = 20_000 * DAY_S
# Situations of a world, each with its label.
WORLD = np.random.default_rng(8).normal(0, 35, (40, 64))
LABELS = np.arange(40) % 10


def experience(situations, n=300, seed=0, labels=LABELS):
    """(label, vector) pairs of an agent that lives through these situations."""
    rng = np.random.default_rng(seed)
    for which in rng.choice(situations, n):
        vector = np.clip(WORLD[which] + rng.normal(0, 10, 64), -127, 127).astype(np.int8)
        yield int(labels[which]), vector.tobytes()


def made(situations, n=300, seed=0, labels=LABELS):
    agent = Agent(bytes(8))
    for label, vector in experience(situations, n, seed, labels):
        agent.note(label, vector, NOW)
    return agent


def sent(agent, book=BOOK):
    """What another gateway reads."""
    return book.sketcher.rounded(agent.fingerprint(book))


def folds(kinds=8, each=6, book=BOOK):
    """(kind, fingerprint) of agents; agents of a kind share most situations."""
    rng = np.random.default_rng(4)
    found = []
    for kind in range(kinds):
        common = rng.choice(40, 6, replace=False)
        for i in range(each):
            own = [*common[:5], int(rng.integers(40))]
            found.append((kind, sent(made(own, seed=100 * kind + i), book), own))
    return found


@pytest.mark.parametrize("kind", [INT4, SIGN, INT8])
def test_the_nearest_agent_is_one_of_the_same_kind(kind):
    book = codebook(kind)
    agents = folds(book=book)
    hits = 0
    for i, (mine, vector, _) in enumerate(agents):
        others = [(alike(book, vector, v), k) for j, (k, v, _) in enumerate(agents) if j != i]
        hits += max(others)[1] == mine
    print(f"\nsketch {book.sketcher.name}: nearest agent is of the same kind {hits}/{len(agents)}")
    assert hits >= 0.95 * len(agents)


def test_agents_that_call_things_differently_are_told_apart():
    """A plain mean over everything cannot do that: it is shown beside."""
    other = np.roll(LABELS, 1)
    situations = [1, 5, 9, 20]
    same, swapped = [], []
    plain_same, plain_swapped = [], []
    for seed in range(10):
        a = made(situations, seed=seed)
        b = made(situations, seed=50 + seed)
        c = made(situations, seed=50 + seed, labels=other)
        same.append(alike(BOOK, sent(a), sent(b)))
        swapped.append(alike(BOOK, sent(a), sent(c)))
        means = [
            np.mean([np.frombuffer(v, np.int8) for _, v in experience(situations, 300, s, lab)], 0)
            for s, lab in ((seed, LABELS), (50 + seed, LABELS), (50 + seed, other))
        ]
        cosine = [means[0] @ m / np.linalg.norm(means[0]) / np.linalg.norm(m) for m in means[1:]]
        plain_same.append(cosine[0])
        plain_swapped.append(cosine[1])
    print(
        f"\nsame names {np.mean(same):.2f}, other names {np.mean(swapped):.2f}; "
        f"plain mean {np.mean(plain_same):.2f} and {np.mean(plain_swapped):.2f}"
    )
    assert min(same) > 0.9 and max(swapped) < 0.5
    assert np.mean(plain_swapped) > 0.95


def test_strangers_are_strangers():
    assert abs(alike(BOOK, sent(made([0, 1, 2])), sent(made([23, 24, 25])))) < 0.4


def test_it_follows_slowly():
    agent = made([1, 2, 3], n=1000)
    before = sent(agent)
    steps = []
    for label, vector in experience([31, 32], n=1500, seed=9):
        agent.note(label, vector, NOW)
        steps.append(alike(BOOK, before, sent(agent)))
    assert steps[0] > 0.97 and steps[20] > 0.8 and steps[-1] < 0.5
    assert alike(BOOK, sent(agent), sent(made([31, 32], n=1000, seed=3))) > 0.9


def test_signs_are_those_of_the_specification():
    for label in (0, 3, 65_535):
        digest = hashlib.sha256(b"domain-1" + b"ag" + label.to_bytes(2, "big") + bytes(2)).digest()
        bits = "".join(format(byte, "08b") for byte in digest)[:64]
        assert signs(b"domain-1", label).tolist() == [1 if bit == "1" else -1 for bit in bits]


def test_state_is_bounded_and_survives():
    agent = Agent(b"agent-01")
    rng = np.random.default_rng(0)
    for i in range(500):
        agent.note(i % 100, rng.integers(-127, 128, 64).astype(np.int8).tobytes(), NOW + i)
    state = agent.pack()
    assert len(agent._labels) == LABELS_KEPT and len(state) < 10_000
    again = Agent.unpack(b"agent-01", state)
    assert again.pack() == state and again.fingerprint(BOOK) == agent.fingerprint(BOOK)
    for broken in (b"", b"x", state[:-1], b"\x80"):
        assert Agent.unpack(b"agent-01", broken).count == 0


def test_extreme_vectors():
    agent = Agent(bytes(8))
    for _ in range(1000):
        agent.note(1, b"\x81" * 64, NOW)
        agent.note(2, b"\x7f" * 64, NOW)
    assert len(agent.fingerprint(BOOK)) == 64
    assert Agent(bytes(8)).fingerprint(BOOK) == bytes(64)


def live(agents, agent, situations, n, now, seed=0):
    for label, vector in experience(situations, n, seed):
        agents.note(agent, label, vector, now)


def test_when_it_is_announced():
    agents = Agents(BOOK)
    a = b"agent-01"
    live(agents, a, [1, 2, 3], ENOUGH - 1, NOW)
    assert agents.due(NOW) == [] and agents.vectors() == {}
    live(agents, a, [1, 2, 3], 400, NOW)
    (action,) = agents.due(NOW)
    assert (action.what, action.reason, action.epoch) == (ANNOUNCE, "new", NOW)
    assert action.expires_s == NOW + 2 * DAY_S and agents.due(NOW) == []
    # More of the same is no news.
    live(agents, a, [1, 2, 3], 400, NOW + 3600 * 7, seed=1)
    assert agents.due(NOW + 3600 * 7) == []
    (action,) = agents.due(NOW + DAY_S)
    assert (action.what, action.reason) == (RENEW, "half-life")
    # Something else is, but not at once.
    live(agents, a, [31, 32], 2000, NOW + DAY_S + 60)
    assert agents.due(NOW + DAY_S + 60) == []
    (action,) = agents.due(NOW + DAY_S + DAY_S // 4)
    assert (action.what, action.reason) == (RENEW, "changed")
    assert alike(BOOK, action.vector, agents.vectors()[a]) > 0.99
    # A silent device fades.
    assert agents.due(NOW + 40 * DAY_S) == []


def test_a_revoked_device_is_withdrawn():
    agents = Agents(BOOK)
    live(agents, b"agent-01", [1], 100, NOW)
    epoch = agents.due(NOW)[0].epoch
    agents.forget(b"agent-01")
    agents.forget(b"agent-02")
    (action,) = agents.due(NOW)
    assert action.what == WITHDRAW and action.epoch > epoch and agents.due(NOW) == []


def test_it_goes_on_after_a_restart(tmp_path):
    db = RoutingDb(tmp_path / "routing.db")
    agents = Agents(BOOK)
    for i in range(5):
        live(agents, b"agent-0%d" % i, [i, i + 1], 100, NOW, seed=i)
    actions = agents.due(NOW)
    db.save_agents(BOOK.domain_id, agents.dirty())
    assert agents.dirty() == []
    again = Agents(BOOK)
    again.restore(db.agents(BOOK.domain_id))
    assert again.vectors() == agents.vectors() and again.due(NOW + 60) == []
    renewed = again.due(NOW + DAY_S)
    assert [x.vector for x in renewed] == [x.vector for x in actions]
    assert all(new.epoch > old.epoch for new, old in zip(renewed, actions, strict=True))
    db.drop_agent(b"agent-00")
    assert len(db.agents(BOOK.domain_id)) == 4
    db.close()
