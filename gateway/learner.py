"""What a gateway learns for its devices: what to fetch, whom to believe, what to keep. Pure.

One lesson goes like this; the first half is asked before anything is fetched:

    needs -> plan_fetch -> exemplars        how many outcomes of each label, like which vectors
    weigh -> guard -> cap -> fit -> accept  what came, how much it counts, whether it helps

**What to fetch.** Nearest *within each label*: the nearest of all tell a site what it knows. Every
label gets its part, more when little is known of it here, when what is in force errs in it, or
is unsure.

**Weights.** What was confirmed counts CONFIRMED times a certain guess; a guess by its confidence,
half as much for each step of synthesis behind it; everything half as much after HALF_LIFE_S;
what comes from elsewhere FOREIGN times what is from here.

**Guards.** An origin is judged by those of its outcomes whose label is known here: does our own
head, or do our own outcomes nearby, say the same? An origin that agrees far less than our own
outcomes agree among themselves is quarantined as a whole, so that it is not believed about labels
either that nobody here can check. Single outcomes that contradict what is near are doubted, and
no origin carries more than CAP of the weight of everything else. An owner who wants more than that
leaves the gateway out of the network's list.

**Acceptance.** A candidate is judged on outcomes that it has not learnt from: local evidence is
cut into folds, each is predicted by a head fitted without it, in the device's integers. What is in
force has predictions of the same kind on record (`Evidence.old`), so that both are measured alike
and the new head has no advantage from having seen the questions. It must be better by more than
chance; if it is not, nothing is sent, and the next lesson has more evidence. Labels that are new
here do not occur in local rows, so fetched outcomes of those labels, also held back, speak for
them. What they gain counts half of what a label lived through here would, and may cost no more
than LOSS_MOST of the local rows, or chance.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edge_agent.head import Head
from gateway.heads import (
    HERE,
    NEIGHBOURS,
    UNKNOWN,
    Bools,
    Evidence,
    FloatHead,
    Floats,
    Ints,
    compiled,
    fit,
    join,
    nearest,
    predict,
    quantise,
    unit,
)
from gateway.sketch import Int8

CONFIRMED = 4.0
FOREIGN = 0.125
HALF_LIFE_S = 30 * 86_400
DEPTH_MOST = 3  # longer chains of synthesis tell nothing
CAP = 0.5

COST = 700  # bytes of one outcome fetched: voucher, pointer, its share of the requests
FEW = 8.0  # confirmed outcomes below which a label counts as scarce
ENOUGH, GOOD = 15, 0.1  # so many outcomes and so few errors: this label needs nobody
PER_LABEL_MOST = 64

KNOWN = 3  # local outcomes from which a label is known here
JUDGED_LEAST = 5  # outcomes before an origin is judged at all
HONEST = 0.6  # of our own agreement is what an honest origin, elsewhere, may fall to
CHANCE = 0.01  # that one as honest as that falls into quarantine
DOUBTED = 0.25  # weight of an outcome that contradicts its surroundings

FOLDS = 5
JUDGES = 10  # confirmed local outcomes from which guesses have no say
NEW_RECALL = 0.1  # gained on labels that are new here
NEW_WORTH = 0.5  # of a label lived through here
LOSS_MOST = 0.1
UNSEEN = 3.0  # outcomes' worth of local evidence below which a label is new here


# -- what to fetch ----------------------------------------------------------------------------


class Needs(NamedTuple):
    """For each label of the domain. counts: local evidence in outcomes.  errors: share of it that
    what is in force gets wrong.  unsure: share about which the device was unsure."""

    counts: Floats
    errors: Floats
    unsure: Floats


def needs(local: Evidence, unsure: Bools, labels: int) -> Needs:
    """unsure: (n,) of the rows."""
    counts = np.bincount(local.labels, minlength=labels).astype(np.float64)
    least = np.maximum(counts, 1.0)
    wrong = (local.old != local.labels) & (local.old != UNKNOWN)
    return Needs(
        counts,
        np.bincount(local.labels, wrong, labels) / least,
        np.bincount(local.labels, unsure, labels) / least,
    )


def plan_fetch(
    counts: "Sequence[float] | Floats",
    errors: "Sequence[float] | Floats",
    unsure: "Sequence[float] | Floats",
    budget_bytes: int,
    cost: int = COST,
) -> dict[int, int]:
    """label -> how many of its outcomes to ask for. The sum costs no more than the budget."""
    known, wrong = np.asarray(counts, np.float64), np.asarray(errors, np.float64)
    wish = 1.0 + FEW / (FEW + known) + wrong + 0.5 * np.asarray(unsure, np.float64)
    wish[(known >= ENOUGH) & (wrong < GOOD)] = 0.0
    most = max(0, budget_bytes // cost)
    if not wish.any():
        return {}
    share = np.minimum(wish / wish.sum() * most, PER_LABEL_MOST)
    whole = np.floor(share).astype(int)
    left = min(most - int(whole.sum()), int(np.ceil(share - whole).sum()))
    for label in np.argsort(-(share - whole), kind="stable")[: max(0, left)]:
        whole[label] += 1
    return {label: int(k) for label, k in enumerate(whole) if k}


def exemplars(local: Evidence, label: int, first: Bools, count: int) -> Int8:
    """Up to `count` vectors to ask with about a label: of its own outcomes, else of all; those
    marked `first` before others, and far apart."""
    mine = np.flatnonzero(local.labels == label)
    rows = mine if len(mine) >= KNOWN else np.arange(len(local.labels))
    if not len(rows):
        return local.vectors[:0]
    x = unit(local.vectors[rows])
    start = int(np.argmax(first[rows]))  # 0 when none is marked
    chosen, closest = [start], x @ x[start]
    while len(chosen) < min(count, len(rows)):
        # Marked ones win as long as they are not the same over again.
        away = (1 - closest) * np.where(first[rows], 2.0, 1.0)
        far = int(np.argmax(away))
        if away[far] < 1e-3:
            break
        chosen.append(far)
        closest = np.maximum(closest, x @ x[far])
    return local.vectors[rows[chosen]]


# -- how much it counts -----------------------------------------------------------------------


def weigh(
    confirmed: bool,
    confidence: int,
    age_s: float,
    depth: int = 0,
    foreign: bool = False,
    half_life_s: float = HALF_LIFE_S,
) -> float:
    """Weight of an outcome. confidence: 0..255, of guesses.  depth: steps of synthesis."""
    weight = CONFIRMED if confirmed else confidence / 255
    if not confirmed:
        weight *= 0.0 if depth > DEPTH_MOST else 0.5**depth
    age = math.pow(0.5, max(0.0, age_s) / half_life_s)
    return weight * (FOREIGN if foreign else 1.0) * age


class Trust(NamedTuple):
    """judged: outcomes of an origin that could be.  agreed: share that fit.  expected: what our
    own would reach.  doubted: those that contradict what is near.  weight: what it carries."""

    judged: int
    agreed: float
    expected: float
    doubted: int
    quarantined: bool
    weight: float


def guard(
    local: Evidence, fetched: Evidence, said: "Ints | None" = None
) -> tuple[Evidence, dict[int, Trust]]:
    """The fetched evidence that remains, with the weights it deserves, and why.

    said: (n,), what the head in force says of the fetched rows; UNKNOWN for nothing.
    """
    trusted, _, trust = _guarded(local, fetched, said)
    return trusted, trust


def _guarded(
    local: Evidence, fetched: Evidence, said: "Ints | None"
) -> tuple[Evidence, Ints, dict[int, Trust]]:
    """As `guard`, with the positions of what remains."""
    n = len(fetched.labels)
    said = np.full(n, UNKNOWN) if said is None else said
    ours, theirs = _agreement(local, fetched)
    expected = _mean((ours >= 0.5) | (local.old == local.labels), local.weights)
    fits = (theirs.share >= 0.5) | (said == fetched.labels)
    most = int(max(fetched.labels.max(initial=0), said.max(initial=0))) + 1
    # Known here: what was lived through, and what the head in force itself can say.
    able = np.bincount(said[said != UNKNOWN], minlength=most)
    counts = np.maximum(np.bincount(local.labels, minlength=most)[:most], able)
    known = counts[fetched.labels] >= KNOWN
    judged = known & (theirs.near | (said != UNKNOWN))
    doubt = known & theirs.near & (theirs.share < 0.2) & (said != fetched.labels)
    weights = np.where(doubt, DOUBTED, 1.0) * fetched.weights
    trust: dict[int, Trust] = {}
    for source in np.unique(fetched.source).tolist():
        mine = fetched.source == source
        asked, good = int((mine & judged).sum()), int((mine & judged & fits).sum())
        liar = asked >= JUDGED_LEAST and binomial(good, asked, HONEST * expected) < CHANCE
        if liar:
            weights[mine] = 0.0
        trust[source] = Trust(
            asked, good / asked if asked else 0.0, expected, int((mine & doubt).sum()), liar, 0.0
        )
    kept = capped(local, fetched._replace(weights=weights))
    for source, one in trust.items():
        weight = float(kept.weights[kept.source == source].sum())
        trust[source] = one._replace(weight=weight)
    used = np.flatnonzero(kept.weights > 0)
    return kept.take(used), used, trust


def capped(local: Evidence, fetched: Evidence) -> Evidence:
    """No source weighs more than CAP times everything else together."""
    weights = fetched.weights.copy()
    totals = {s: float(weights[fetched.source == s].sum()) for s in np.unique(fetched.source)}
    everything = local.total() + sum(totals.values())
    for source, total in totals.items():
        most = CAP * (everything - total)
        if total > most:
            weights[fetched.source == source] *= most / total
    return fetched._replace(weights=weights)


class _Agreement(NamedTuple):
    near: Bools  # local evidence is near enough to say anything
    share: Floats  # of what is near has the same label


def _agreement(local: Evidence, fetched: Evidence) -> tuple[Floats, _Agreement]:
    """How local evidence nearby sees each of its own rows (the share; without the row itself),
    and the fetched ones."""
    n = len(fetched.labels)
    if len(local.labels) <= NEIGHBOURS:
        return np.zeros(len(local.labels)), _Agreement(np.zeros(n, np.bool_), np.zeros(n))
    x = unit(local.vectors)
    order, close = nearest(x, x, True)
    ours = _share(local, local.labels, order, close)
    near_enough = np.quantile(close[:, 0], 0.1)
    order, close = nearest(unit(fetched.vectors), x)
    theirs = _share(local, fetched.labels, order, close)
    return ours, _Agreement(close[:, 0] >= near_enough, theirs)


def _share(local: Evidence, labels: Ints, order: Ints, close: Floats) -> Floats:
    pull = np.exp(20 * (close - close[:, :1])) * np.maximum(local.weights[order], 1e-9)
    found: Floats = (pull * (local.labels[order] == labels[:, None])).sum(1) / pull.sum(1)
    return found


def _mean(values: Bools, weights: Floats) -> float:
    total = float(weights.sum())
    return float((values * weights).sum()) / total if total else 0.0


def binomial(most: int, n: int, p: float) -> float:
    """Probability of at most `most` successes in n trials of probability p."""
    p = min(max(p, 0.0), 1.0)
    if n > 1000:  # the number of ways is no float any more
        if p in (0.0, 1.0):
            return float(most >= n * p)
        logs = (
            math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
            + k * math.log(p) + (n - k) * math.log1p(-p)
            for k in range(most + 1)
        )  # fmt: skip
        return math.fsum(map(math.exp, logs))
    return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(most + 1))


# -- what to keep -----------------------------------------------------------------------------


class Verdict(NamedTuple):
    """better, worse: local outcomes, by weight, that only the new or only the old gets right.
    recall_new, recall_old: on labels that are new here, None where there are none."""

    accepted: bool
    why: str
    better: float
    worse: float
    recall_new: float | None
    recall_old: float | None


def accept(new: Ints, old: Ints, held_back: Evidence) -> Verdict:
    """new, old: what each says of the rows, none of which it has learnt from.

    Local rows judge by weight; when enough are confirmed, only those, because what is in force
    is always right about its own guesses. Others count only with labels that are new here.
    """
    local = held_back.source == HERE
    if int((local & held_back.confirmed).sum()) >= JUDGES:
        held_back = held_back._replace(weights=held_back.weights * (held_back.confirmed | ~local))
    weight = held_back.weights / max(float(held_back.weights.max(initial=0.0)), 1e-9)
    right, was = new == held_back.labels, old == held_back.labels
    better = float(weight[local & right & ~was].sum())
    worse = float(weight[local & was & ~right].sum())
    recalls = [
        (_mean(right[rows], weight[rows]), _mean(was[rows], weight[rows]))
        for label in np.unique(held_back.labels[~local]).tolist()
        if float(weight[local & (held_back.labels == label)].sum()) < UNSEEN
        for rows in [~local & (held_back.labels == label)]
    ]
    recall_new = sum(r for r, _ in recalls) / len(recalls) if recalls else None
    recall_old = sum(r for _, r in recalls) / len(recalls) if recalls else None
    gain = 0.0 if recall_new is None or recall_old is None else recall_new - recall_old
    if gain < -NEW_RECALL:
        accepted, why = False, "forgets labels that only others have"
    elif gain > NEW_RECALL:
        loss = (worse - better) / max(float(weight[local].sum()), 1e-9)
        known = len(np.unique(held_back.labels[local]))
        worth = NEW_WORTH * len(recalls) * gain - known * loss
        chance = worse - better <= math.sqrt(better + worse)
        accepted = chance or (worth > 0 and loss <= LOSS_MOST)
        why = "knows labels that are new here" if accepted else "pays too much for new labels"
    elif better > worse and better - worse >= math.sqrt(better + worse):
        accepted, why = True, "better on local outcomes"
    else:
        accepted, why = False, "no better" if better >= worse else "worse on local outcomes"
    return Verdict(accepted, why, better, worse, recall_new, recall_old)


class Lesson(NamedTuple):
    """rows: of the candidate, whether accepted or not.  held, held_fetched: what it says of each
    local and fetched row without having learnt from it, UNKNOWN for what was not used: the `old`
    of the next lesson.  trust: by source."""

    rows: list[bytes]
    verdict: Verdict
    held: Ints
    held_fetched: Ints
    trust: dict[int, Trust]
    learnt_from: int


def learn(
    base: "FloatHead | None",
    in_force: "Head | FloatHead | None",
    local: Evidence,
    fetched: Evidence,
    labels: int,
    version: int,
    model_id: bytes,
) -> Lesson:
    """A lesson, complete. in_force: what decides at the device now, where that is known; the
    base when it has no head yet."""
    said = _said(in_force, fetched.vectors)
    trusted, used, trust = _guarded(local, fetched, said)
    everything = join(local, trusted)
    n = len(local.labels)
    held = np.full(len(everything.labels), UNKNOWN)
    for out in folds(everything, FOLDS):
        rest = np.ones(len(held), np.bool_)
        rest[out] = False
        head = fit(base, everything.take(rest), labels)
        held[out] = predict(compiled(quantise(head, 0, model_id)), everything.vectors[out])
    old = np.where(everything.old == UNKNOWN, _said(in_force, everything.vectors), everything.old)
    rows = quantise(fit(base, everything, labels), version, model_id)
    verdict = accept(held, old, everything)
    if in_force is None and verdict.accepted and len(_untaught(local)):
        verdict = verdict._replace(accepted=False, why="the model knows labels not met here")
    held_fetched = np.full(len(fetched.labels), UNKNOWN)
    held_fetched[used] = held[n:]
    return Lesson(rows, verdict, held[:n], held_fetched, trust, len(held))


def _untaught(local: Evidence) -> Ints:
    """Labels that the devices' own model says, and that were not lived through here: where
    nobody has its last layer, a new head would lose them unnoticed."""
    mine = local.take(local.source == HERE)
    if mine.confirmed.any():
        mine = mine.take(mine.confirmed)
    lived = np.bincount(mine.labels, minlength=1)
    heard = np.unique(local.old[(local.source == HERE) & (local.old != UNKNOWN)])
    return heard[[label >= len(lived) or lived[label] < KNOWN for label in heard.tolist()]]


def _said(head: "Head | FloatHead | None", vectors: Int8) -> Ints:
    if head is None:
        return np.full(len(vectors), UNKNOWN)
    if isinstance(head, Head):
        return predict(head, vectors)
    return np.asarray(head.logits(vectors).argmax(1), np.int64)


def folds(rows: Evidence, count: int) -> list[Ints]:
    """Positions in `count` parts, the labels spread over all of them."""
    order = np.lexsort((np.arange(len(rows.labels)), rows.labels, rows.source != HERE))
    parts = (order[k::count] for k in range(count))
    return [part for part in parts if len(part)]


# -- what to take back ------------------------------------------------------------------------

LIVE_LEAST = 8  # judged outcomes that differ before anything is taken back
DROP_CHANCE = 0.05


def worse(only_old: int, only_new: int) -> bool:
    """Whether the judged outcomes made with a head speak against it: only_old, only_new count
    those that only what it replaced, or only the head, got right. A sign test."""
    n = only_old + only_new
    return n >= LIVE_LEAST and only_old > only_new and binomial(only_new, n, 0.5) < DROP_CHANCE


def dropped(right: int, n: int, before: float) -> bool:
    """Whether n judged outcomes, `right` of them right, are fewer than `before` promised."""
    return n >= 2 * LIVE_LEAST and binomial(right, n, before) < DROP_CHANCE
