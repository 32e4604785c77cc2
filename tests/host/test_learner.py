"""The policy of learning, without any gateway: what to fetch, whom to believe, what to keep."""

import json
import re

import numpy as np
import pytest
from learn_kit import LABELS, MODELS, SITES, base, left, lived, near_of_others, of_others, right
from scipy.stats import binom

from edge_agent.errors import ConfigError
from gateway import heads, learner
from gateway.heads import UNKNOWN, evidence
from gateway.learner_settings import LearnerSettings


def accuracy(rows, person):
    vectors, truth, _ = right(person)
    return float((heads.predict(heads.compiled(rows), vectors) == truth).mean())


def alone(person):
    _, truth, said = right(person)
    return float((said == truth).mean())


def lesson(person, fetched, local=None):
    local = left(person) if local is None else local
    return learner.learn(base(), base(), local, fetched, LABELS, 1, b"")


# -- what to fetch


def test_a_plan_costs_no_more_than_its_budget():
    rng = np.random.default_rng(1)
    for _ in range(200):
        counts, errors, unsure = rng.integers(0, 90, 9), 0.1 + rng.random(9), rng.random(9)
        budget = int(rng.integers(0, 400_000))
        plan = learner.plan_fetch(counts, errors, unsure, budget)
        assert sum(plan.values()) * learner.COST <= budget
        assert all(0 < k <= learner.PER_LABEL_MOST for k in plan.values())
        if budget < 9 * learner.PER_LABEL_MOST * learner.COST / 3:
            assert sum(plan.values()) >= budget // learner.COST - 9


def test_a_plan_asks_more_where_it_is_needed():
    same = learner.plan_fetch([9] * 4, [0] * 4, [0] * 4, 80 * learner.COST)
    assert same == {0: 20, 1: 20, 2: 20, 3: 20}
    scarce = learner.plan_fetch([9, 9, 9, 0], [0] * 4, [0] * 4, 80 * learner.COST)
    assert scarce[3] > scarce[0]
    wrong = learner.plan_fetch([9] * 4, [0, 0.6, 0, 0], [0, 0, 0.6, 0], 80 * learner.COST)
    assert wrong[1] > wrong[2] > wrong[0]
    assert learner.plan_fetch([0] * 4, [0] * 4, [0] * 4, 10) == {}
    # A label that is known well needs nobody, one that is known and wrong does.
    content = learner.plan_fetch([50, 50, 3], [0.02, 0.4, 0.02], [0, 0, 0], 60 * learner.COST)
    assert set(content) == {1, 2}
    assert learner.plan_fetch([50] * 3, [0] * 3, [1] * 3, 60 * learner.COST) == {}


def test_needs_are_counted_by_label():
    rows = evidence(np.zeros((5, 64), np.int8), [0, 0, 1, 1, 1], old=[0, 1, 1, 0, UNKNOWN])
    found = learner.needs(rows, np.array([True, False, False, False, True]), 3)
    assert found.counts.tolist() == [2, 3, 0]
    assert found.errors.tolist() == pytest.approx([1 / 2, 1 / 3, 0])
    assert found.unsure.tolist() == pytest.approx([1 / 2, 1 / 3, 0])


def test_exemplars_are_of_the_label_or_else_of_all_and_apart():
    rows = left(4)
    first = rows.old != rows.labels
    mine = {v.tobytes() for v in rows.vectors[rows.labels == 2]}
    found = learner.exemplars(rows, 2, first, 4)
    assert {v.tobytes() for v in found} <= mine and len({v.tobytes() for v in found}) == 4
    without = rows.take(rows.labels != 2)
    found = learner.exemplars(without, 2, without.old != without.labels, 4)
    assert len(found) == 4
    # those marked come first
    where = [v.tobytes() for v in without.vectors]
    marked = [bool(first[rows.labels != 2][where.index(v.tobytes())]) for v in found]
    assert marked[0]
    same = evidence(np.ones((9, 64), np.int8), 0)
    assert len(learner.exemplars(same, 0, np.zeros(9, bool), 4)) == 1
    assert not len(learner.exemplars(heads.nothing(), 0, np.zeros(0, bool), 4))


# -- what counts how much


def test_weights():
    day = 86_400
    sure = learner.weigh(False, 255, 0)
    assert learner.weigh(True, 0, 0) == 4 * sure == 4
    assert learner.weigh(False, 51, 0) == pytest.approx(0.2)
    assert learner.weigh(True, 0, 30 * day) == 2
    assert learner.weigh(False, 255, 0, 2) == 0.25 and learner.weigh(False, 255, 0, 4) == 0
    assert learner.weigh(True, 255, 0, 4) == 4  # what was confirmed is no rumour
    assert learner.weigh(True, 0, 0, 0, True) == 0.5
    assert learner.weigh(True, 0, -5) == 4  # a clock ahead of ours gains nothing


def test_no_origin_outweighs_everything_else():
    local = evidence(np.ones((3, 64), np.int8), 0, 4.0)
    fetched = evidence(np.ones((60, 64), np.int8), 1, 2.0, [1] * 50 + [2] * 10)
    kept = learner.capped(local, fetched)
    assert kept.weights[kept.source == 1].sum() == pytest.approx(0.5 * (12 + 20))
    assert kept.weights[kept.source == 2].sum() == 20


# -- whom to believe


def test_honest_origins_are_believed():
    for person in SITES:
        fetched = of_others(person)
        said = base().logits(fetched.vectors).argmax(1)
        _, trust = learner.guard(left(person), fetched, said)
        assert not any(one.quarantined for one in trust.values()), person
        assert all(one.judged > 20 for one in trust.values())


@pytest.mark.parametrize("liars", [(5,), (5, 8), (5, 8, 10)])
def test_those_who_flip_labels_are_found_out(liars):
    def flip(origin, truth):
        return (truth + 1) % LABELS if origin in liars else truth

    for person in SITES:
        if person in liars:
            continue
        fetched = of_others(person, claim=flip)
        said = base().logits(fetched.vectors).argmax(1)
        kept, trust = learner.guard(left(person), fetched, said)
        caught = {origin for origin, one in trust.items() if one.quarantined}
        assert caught == set(liars), person
        assert not np.isin(kept.source, liars).any()
        # and the head that results is as good as without them, which it is not unguarded
        rows = lesson(person, fetched).rows
        blind = heads.fit(base(), heads.join(left(person), fetched), LABELS)
        vectors, truth, _ = right(person)
        poisoned = float((blind.logits(vectors).argmax(1) == truth).mean())
        assert accuracy(rows, person) >= poisoned - 0.06


def test_guarding_matters():
    """Over all honest sites: three of seven flip labels."""
    liars = (5, 8, 10)

    def flip(origin, truth):
        return (truth + 1) % LABELS if origin in liars else truth

    with_guard, without = [], []
    for person in set(SITES) - set(liars):
        fetched = of_others(person, claim=flip)
        with_guard.append(accuracy(lesson(person, fetched).rows, person))
        blind = heads.fit(base(), heads.join(left(person), fetched), LABELS)
        without.append(accuracy(heads.quantise(blind, 1, b""), person))
    assert np.mean(with_guard) > np.mean(without) + 0.05


def test_single_contradictions_are_doubted():
    local = left(4)
    fetched = heads.evidence(local.vectors, local.labels, 2.0, 9)
    labels = fetched.labels.copy()
    labels[:4] = (labels[:4] + 2) % LABELS
    fetched = fetched._replace(labels=labels)
    _, trust = learner.guard(local, fetched)
    assert trust[9].doubted >= 3 and not trust[9].quarantined


def test_nothing_known_here_nobody_is_judged():
    kept, trust = learner.guard(evidence(np.ones((1, 64), np.int8), 0, 100.0), of_others(4))
    assert all(one.judged == 0 and not one.quarantined for one in trust.values())
    assert len(kept.labels) == len(of_others(4).labels)


# -- what to keep


def test_a_lesson_helps():
    before, after = [], []
    for person in SITES:
        taught = lesson(person, near_of_others(person))
        before.append(alone(person))
        after.append(accuracy(taught.rows, person) if taught.verdict.accepted else alone(person))
    assert np.mean(after) > np.mean(before) + 0.02
    # Not for everybody: the other arm is not quite the same world.
    assert sum(a >= b for a, b in zip(after, before, strict=True)) >= 5


def test_a_label_that_is_new_here_is_learnt_from_others():
    """Upright row and abduction were never seen here, and what is in force has no rows for them:
    a domain to which labels were appended."""
    new = (1, 6)
    unknown = np.isin(range(LABELS), new)
    knows_not = heads.FloatHead(
        np.where(unknown[:, None], 0.0, base().weights), np.where(unknown, -5.0, base().bias)
    )
    vectors, truth, _ = right(6)
    local = left(6)
    local = local.take(~np.isin(local.labels, new))
    taught = learner.learn(knows_not, knows_not, local, near_of_others(6), LABELS, 1, b"")
    assert taught.verdict.accepted and taught.verdict.recall_old < 0.05, taught.verdict
    said = heads.predict(heads.compiled(taught.rows), vectors)
    recall = [float((said == truth)[truth == label].mean()) for label in new]
    assert min(recall) > 0.3, recall


def test_a_model_whose_last_layer_nobody_has_is_not_taken_for_ignorant():
    """Only four labels were ever judged here. The devices' model knows all seven, and has been
    heard to say them; a head that is fitted from nothing knows what it was shown."""
    local = left(6).take(left(6).labels < 4)
    said_all = local.old.copy()
    said_all[:3] = (4, 5, 6)
    local = local._replace(old=said_all)
    for fetched in (heads.nothing(), near_of_others(6)):
        taught = learner.learn(None, None, local, fetched, LABELS, 1, b"")
        assert taught.verdict.why == "the model knows labels not met here", taught.verdict
    # A label that it never said is nothing to lose.
    all_but_one = left(6).take(left(6).labels != 6)
    old = np.where(all_but_one.old == 6, 0, all_but_one.old)
    fetched = near_of_others(6)
    taught = learner.learn(None, None, all_but_one._replace(old=old), fetched, LABELS, 1, b"")
    assert taught.verdict.accepted and taught.verdict.recall_new > 0.5, taught.verdict


def test_acceptance():
    rows = evidence(np.zeros((10, 64), np.int8), [0] * 10, 4.0)
    truth, wrong = np.zeros(10, int), np.ones(10, int)
    assert learner.accept(truth, wrong, rows) == (
        True,
        "better on local outcomes",
        10,
        0,
        None,
        None,
    )
    assert learner.accept(wrong, truth, rows).why == "worse on local outcomes"
    assert not learner.accept(truth, truth, rows).accepted  # no reason to send anything

    # Ten outcomes elsewhere are of a label that is new here: it may cost a little, not a lot.
    more = heads.join(rows, evidence(np.zeros((10, 64), np.int8), [1] * 10, 2.0, 3))
    knows = np.array([0] * 10 + [1] * 10)
    verdict = learner.accept(knows, np.zeros(20, int), more)
    assert verdict.accepted and (verdict.recall_new, verdict.recall_old) == (1, 0)
    costs = knows.copy()
    costs[:1] = 1
    assert learner.accept(costs, np.zeros(20, int), more).accepted
    costs[:4] = 1
    assert learner.accept(costs, np.zeros(20, int), more).why == "pays too much for new labels"
    # Forgetting what only others have shows, too.
    assert learner.accept(np.zeros(20, int), knows, more).why.startswith("forgets")


def test_guesses_do_not_defend_what_made_them():
    """Forty guesses agree with what is in force, as guesses do; twelve judgements do not."""
    guesses = evidence(np.zeros((40, 64), np.int8), [0] * 40, 1.0, confirmed=False)
    judged = evidence(np.zeros((12, 64), np.int8), [1] * 12, 4.0)
    old, new = np.zeros(52, int), np.ones(52, int)
    assert learner.accept(new, old, heads.join(guesses, judged)).accepted
    # Without judgements nothing speaks for the new one.
    assert not learner.accept(new[:40], old[:40], guesses).accepted


def test_a_candidate_is_not_judged_by_what_it_has_learnt():
    """Labels that mean nothing cannot be learnt; judged on its own rows a head would seem to."""
    rng = np.random.default_rng(2)
    vectors = rng.integers(0, 127, (60, 64)).astype(np.int8)
    noise = evidence(vectors, rng.integers(0, 7, 60), 4.0, 0, rng.integers(0, 7, 60))
    taught = learner.learn(None, None, noise, heads.nothing(), LABELS, 1, b"")
    seen = heads.predict(heads.compiled(taught.rows), vectors)
    assert (seen == noise.labels).mean() > 0.6
    assert (taught.held == noise.labels).mean() < 0.35


def test_a_lesson_is_the_same_every_time():
    one, two = lesson(7, of_others(7)), lesson(7, of_others(7))
    assert one.rows == two.rows and one.verdict == two.verdict


def test_folds_hold_everything_once_and_every_label():
    rows = heads.join(left(4), of_others(4))
    parts = learner.folds(rows, 5)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(rows.labels)))
    for part in parts:
        assert set(rows.labels[part].tolist()) == set(range(LABELS))
    assert sum(map(len, learner.folds(heads.evidence([bytes(64)], [0]), 5))) == 1


# -- what to take back


def test_taking_back_needs_evidence():
    assert not learner.worse(3, 0)  # too few
    assert not learner.worse(6, 5)  # chance
    assert learner.worse(8, 0) and learner.worse(15, 4)
    assert not learner.worse(0, 12)
    assert learner.dropped(8, 20, 0.8) and not learner.dropped(14, 20, 0.8)
    assert not learner.dropped(0, 5, 0.9)


def test_binomial():
    assert learner.binomial(20, 20, 0.3) == pytest.approx(1)
    assert learner.binomial(0, 10, 0.5) == pytest.approx(0.5**10)
    assert learner.binomial(3, 9, 0) == 1


@pytest.mark.parametrize("n", [999, 1001, 2000, 20_000])
def test_binomial_of_many(n):
    """An origin, or a head, has been judged more often than a float can count the ways of."""
    for p in (0.02, 0.5, 0.9):
        for most in (int(p * n) - 20, int(p * n), int(p * n) + 20):
            expected = binom.cdf(most, n, p)
            assert learner.binomial(most, n, p) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert learner.binomial(n - 1, n, 1) == 0 and learner.binomial(n, n, 1) == 1
    assert learner.binomial(0, n, 0) == 1
    assert learner.dropped(n // 2, n, 0.9) and not learner.dropped(n - 1, n, 0.9)


def test_the_kit_is_about_real_people():
    assert len(lived()) == 14 and 0.7 < np.mean([alone(p) for p in SITES]) < 0.85


def test_the_document_names_every_setting_with_its_default():
    text = (MODELS.parent / "docs" / "learning.md").read_text()
    (shown,) = re.findall(r"```json\n(\"routing\".*)\n```", text)
    section = json.loads("{" + shown + "}")["routing"]["learner"]
    assert section == LearnerSettings()._asdict()
    assert LearnerSettings.parse(section, "here") == LearnerSettings()
    for name in section:
        assert f"| `{name}` |" in text


@pytest.mark.parametrize(
    "fields", [{"on": 1}, {"every_s": 0}, {"fetch_kb": -1}, {"neighbours": 24}, {"colour": "red"}]
)
def test_wrong_settings_are_named(fields):
    with pytest.raises(ConfigError, match=r"learner\." + next(iter(fields))):
        LearnerSettings.parse(fields, "learner")
