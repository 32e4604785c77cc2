"""Heads: the last layer, refitted from outcomes. Fitting is in floats, what results is not.

A head maps the 64 numbers of an outcome's vector to one logit per label. A gateway fits one
for its devices from local and fetched outcomes, without ever seeing what a sensor saw, and
sends it as rows of integers; what a device computes from those is `edge_agent.head`, the same
arithmetic everywhere.

Fitting minimises, over weights W and biases b,

    sum_i w_i cross-entropy(label_i, W x_i + b) + pull / 2 (|W - W0|^2 + (b - b0)^2)

with x in units of the evidence's own root mean square, so that `pull` means the same in every
domain. W0, b0 are the base head: the model's own last layer where the gateway has the file, else
zero. The sum is not divided by the number of outcomes: where there is little evidence the base
stays, and a class that nobody has seen keeps its row. The base deserves as much pull as it
explains: PULL times the fourth power of its recall, the mean over the labels of the evidence, so
that a base which has never learnt some of them lets go. Labels share the weight (`BALANCE`): what
is rare here need not be rare tomorrow, and a label of which a few outcomes were found must
still be heard. Left out is what contradicts the base and its surroundings both: whoever labels
things, some labels are wrong, and those are mostly such.

The problem is convex and solved by accelerated gradient descent from the base, without any
randomness: the same evidence gives the same rows. `quantise` then turns each row into 64 int8
weights with a scale of its own; `scores` and `predict` here are numpy twins of the device's
integers for whole tables, equal bit by bit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edge_agent.fingerprint import VECTOR_BYTES
from edge_agent.head import MULTIPLIER_MAX, SHIFT_MAX, Head, Row, decode_row, encode_row
from gateway.sketch import Int8

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

HERE = 0  # the source number of local evidence
UNKNOWN = -1

# Chosen on development data, see DESIGN.md: a weaker pull forgets labels that a site has not, a
# stronger one is late for new classes.
PULL, PULL_LEAST = 12.0, 1.0
BALANCE = 1.0
BALANCE_MOST = 8.0  # no outcome gains more than this by being of a rare label
NEIGHBOURS = 5
AT_ONCE = 1024  # rows compared with all others: a table of every pair fills a small gateway
SUPPORT = 0.2  # share of its surroundings that must say the same, unless the base does
STEPS = 400
ENOUGH = 1e-3  # gradient, in units of evidence weight, at which fitting ends


class Evidence(NamedTuple):
    """Outcomes to learn from, one row each.

    vectors: (n, 64).  labels: (n,), true as far as known.  weights: (n,), see learner.weigh.
    source: (n,), HERE or a number the caller gives to another gateway.
    old: (n,), the label that what is in force gives, without having learnt from this row;
    UNKNOWN where that cannot be said.  confirmed: (n,), whether somebody has said so.
    """

    vectors: Int8
    labels: Ints
    weights: Floats
    source: Ints
    old: Ints
    confirmed: Bools

    def take(self, which: "Bools | Ints") -> "Evidence":
        """The rows of a mask, or of a list of positions."""
        return Evidence(
            self.vectors[which],
            self.labels[which],
            self.weights[which],
            self.source[which],
            self.old[which],
            self.confirmed[which],
        )

    def total(self) -> float:
        return float(self.weights.sum())


def evidence(
    vectors: "Int8 | Sequence[bytes]",
    labels: "Sequence[int] | Ints",
    weights: "float | Sequence[float] | Floats" = 1.0,
    source: "int | Sequence[int] | Ints" = HERE,
    old: "int | Sequence[int] | Ints" = UNKNOWN,
    confirmed: "bool | Sequence[bool] | Bools" = True,
) -> Evidence:
    """Rows from lists; one number stands for all rows."""
    if not isinstance(vectors, np.ndarray):
        vectors = np.frombuffer(b"".join(vectors), np.int8).reshape(-1, VECTOR_BYTES)
    n = len(vectors)
    return Evidence(
        vectors,
        np.array(np.broadcast_to(np.asarray(labels, np.int64), n)),
        np.array(np.broadcast_to(np.asarray(weights, np.float64), n)),
        np.array(np.broadcast_to(np.asarray(source, np.int64), n)),
        np.array(np.broadcast_to(np.asarray(old, np.int64), n)),
        np.array(np.broadcast_to(np.asarray(confirmed, np.bool_), n)),
    )


def nothing() -> Evidence:
    return evidence([], [])


def join(*parts: Evidence) -> Evidence:
    """All rows of the parts, in their order."""
    return Evidence(
        np.concatenate([part.vectors for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.source for part in parts]),
        np.concatenate([part.old for part in parts]),
        np.concatenate([part.confirmed for part in parts]),
    )


class FloatHead(NamedTuple):
    """weights: (labels, 64), nats for one unit of a vector.  bias: (labels,), nats."""

    weights: Floats
    bias: Floats

    def logits(self, vectors: Int8) -> Floats:
        found: Floats = vectors.astype(np.float64) @ self.weights.T + self.bias
        return found

    def widened(self, labels: int) -> "FloatHead":
        """With rows of zeros for labels that a later version of the domain appended. Their
        bias is the least of the others: what is new is not likely by itself."""
        more = labels - len(self.bias)
        if more <= 0:
            return FloatHead(self.weights[:labels], self.bias[:labels])
        return FloatHead(
            np.concatenate([self.weights, np.zeros((more, VECTOR_BYTES))]),
            np.concatenate([self.bias, np.full(more, float(self.bias.min(initial=0.0)))]),
        )


def zero_head(labels: int) -> FloatHead:
    return FloatHead(np.zeros((labels, VECTOR_BYTES)), np.zeros(labels))


def fit(
    base: "FloatHead | None",
    rows: Evidence,
    labels: int,
    pull: "float | None" = None,
    balance: float = BALANCE,
) -> FloatHead:
    """The head that explains the evidence and stays near the base. labels: of the domain.
    pull: None for what the base deserves."""
    start = zero_head(labels) if base is None else base.widened(labels)
    if base is not None:
        rows = rows.take(~contradicted(start, rows))
    weights = balanced(rows, labels, balance)
    if not weights.any():
        return start
    if pull is None:
        pull = deserved_pull(base, rows)
    x = rows.vectors.astype(np.float64)
    unit = float(np.sqrt((x * x).mean())) or 1.0
    x = np.concatenate([x / unit, np.ones((len(x), 1))], 1)
    anchor = np.concatenate([start.weights * unit, start.bias[:, None]], 1)
    truth = np.zeros((len(x), labels))
    truth[np.arange(len(x)), rows.labels] = 1.0
    steepest = float(np.linalg.eigvalsh((x * weights[:, None]).T @ x)[-1])
    step = 1.0 / (0.5 * steepest + pull)
    enough = ENOUGH * float(weights.sum())
    now, ahead, speed = anchor, anchor, 1.0
    for _ in range(STEPS):
        wrong = softmax(x @ ahead.T) - truth
        slope = (wrong * weights[:, None]).T @ x + pull * (ahead - anchor)
        if float(np.abs(slope).max()) < enough:
            break
        new = ahead - step * slope
        if float(((ahead - new) * (new - now)).sum()) > 0:
            speed = 1.0  # it went past the valley: begin anew from here
        faster = 0.5 + np.sqrt(0.25 + speed * speed)
        ahead = new + (speed - 1) / faster * (new - now)
        now, speed = new, faster
    return FloatHead(now[:, :-1] / unit, now[:, -1].copy())


def contradicted(base: FloatHead, rows: Evidence) -> Bools:
    """(n,) rows of which the base says something else, and their nearest others, too."""
    n = len(rows.labels)
    if n <= NEIGHBOURS:
        return np.zeros(n, np.bool_)
    x = unit(rows.vectors)
    order, alike = nearest(x, x, True)
    close = np.exp(20 * (alike - 1))
    same = rows.labels[order] == rows.labels[:, None]
    share = (close * same).sum(1) / np.maximum(close.sum(1), 1e-300)
    other: Bools = base.logits(rows.vectors).argmax(1) != rows.labels
    found: Bools = other & (share < SUPPORT)
    return found


def unit(vectors: Int8) -> Floats:
    """The same vectors, of length 1."""
    x = vectors.astype(np.float64)
    found: Floats = x / np.maximum(np.sqrt((x * x).sum(1, keepdims=True)), 1e-9)
    return found


def nearest(rows: Floats, among: Floats, itself: bool = False) -> tuple[Ints, Floats]:
    """(n, NEIGHBOURS): for each unit vector the positions of the nearest others, nearest first,
    and their cosines. itself: the rows are `among`, and none is a neighbour of its own."""
    order, alike = [], []
    for at in range(0, max(1, len(rows)), AT_ONCE):
        some = rows[at : at + AT_ONCE] @ among.T
        if itself:
            i = np.arange(len(some))
            some[i, at + i] = -2.0
        first = np.argsort(-some, 1, kind="stable")[:, :NEIGHBOURS]
        order.append(first)
        alike.append(np.take_along_axis(some, first, 1))
    return np.concatenate(order), np.concatenate(alike)


def deserved_pull(base: "FloatHead | None", rows: Evidence) -> float:
    """See the module."""
    if base is None:
        return PULL_LEAST
    recall = evaluate(base.logits(rows.vectors).argmax(1), rows).recall
    explained = sum(recall.values()) / len(recall) if recall else 1.0
    return PULL_LEAST + (PULL - PULL_LEAST) * explained**4


def balanced(rows: Evidence, labels: int, balance: float) -> Floats:
    """Weights with which labels count more alike: each label's total to the power 1 - balance,
    the sum over all rows as it was."""
    totals = np.bincount(rows.labels, rows.weights, labels)
    there = totals > 0
    if not there.any():
        return np.zeros(len(rows.labels))
    factor = (np.where(there, totals, 1.0) / totals[there].mean()) ** -balance
    weights: Floats = rows.weights * np.minimum(factor, BALANCE_MOST)[rows.labels]
    scaled: Floats = weights * (rows.total() / float(weights.sum()))
    return scaled


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: Floats = powers / powers.sum(1, keepdims=True)
    return shares


# -- integers -------------------------------------------------------------------------------

_BIAS_MAX = (1 << 31) - 1
_UNITS = 256  # logits of a device are in 1/256 nat


def quantise(head: FloatHead, version: int, model_id: bytes) -> list[bytes]:
    """The bodies of the boxes that carry it, one for each label (edge_agent.head.encode_row)."""
    count = len(head.bias)
    return [
        encode_row(_row(version, model_id, i, count, head.weights[i], float(head.bias[i])))
        for i in range(count)
    ]


def _row(
    version: int, model_id: bytes, index: int, count: int, weights: Floats, bias: float
) -> Row:
    # One step of the row in nats: 127 steps reach its largest weight, and the bias fits.
    step = max(float(np.abs(weights).max()) / 127, abs(bias) / _BIAS_MAX, 2.0**-30)
    whole = np.clip(np.rint(weights / step), -127, 127).astype(np.int8)
    mantissa, exponent = np.frexp(step * _UNITS)
    shift = 31 - int(exponent)
    multiplier = min(MULTIPLIER_MAX, round(float(mantissa) * 2.0**31))
    if shift > SHIFT_MAX:
        multiplier, shift = multiplier >> (shift - SHIFT_MAX), SHIFT_MAX
    return Row(
        version, model_id, index, count, whole.tobytes(), round(bias / step), multiplier, shift
    )


def compiled(rows: Sequence[bytes]) -> Head:
    """What a device makes of these boxes. ValueError when they are not one whole head."""
    decoded = [decode_row(row) for row in rows]
    if not decoded:
        raise ValueError("a head without rows")
    return Head(decoded[0].version, decoded[0].model_id, decoded)


def dequantised(head: Head) -> FloatHead:
    """The floats that its integers stand for: a base to fit on from."""
    step = np.array([row.multiplier / 2.0**row.shift / _UNITS for row in head.rows])
    weights = np.stack([np.frombuffer(row.weights, np.int8) for row in head.rows])
    bias = np.array([row.bias for row in head.rows], np.float64)
    return FloatHead(weights * step[:, None], bias * step)


def scores(head: Head, vectors: Int8) -> npt.NDArray[np.uint8]:
    """(n, labels): Head.scores of every row of a table, the same bits."""
    weights = np.stack([np.frombuffer(row.weights, np.int8) for row in head.rows])
    bias, multiplier, shift = (np.array([row[k] for row in head.rows], np.int64) for k in (5, 6, 7))
    acc = vectors.astype(np.int64) @ weights.astype(np.int64).T + bias
    logits = (acc * multiplier + ((1 << shift) >> 1)) >> shift
    # 94548 / 65536 is 1 / ln 2; what is so far below counts as nothing anyway.
    below = np.minimum(logits.max(1, keepdims=True) - logits, 1 << 20)
    d = (below * 94548 + 32768) >> 16
    f = d & 255
    y = 7575 + ((-1296 * f) >> 8)
    y = -22663 + ((y * f) >> 8)
    y = 32768 + ((y * f) >> 8)
    parts = np.where(d >= 4096, 0, y >> np.minimum(d >> 8, 62))
    total = parts.sum(1, keepdims=True)
    return np.asarray((255 * parts + (total >> 1)) // total, np.uint8)


def predict(head: Head, vectors: Int8) -> Ints:
    """The labels a device would conclude: the highest score, the first of equals."""
    return np.asarray(scores(head, vectors).argmax(1), np.int64)


class Score(NamedTuple):
    """right: share of the weight.  recall: label -> the same, for labels that occur.
    rows: how many outcomes it is about."""

    right: float
    recall: dict[int, float]
    rows: int


def evaluate(head: "Head | Ints", rows: Evidence) -> Score:
    """How right a head is on some evidence, or predictions that were made of it."""
    guess = predict(head, rows.vectors) if isinstance(head, Head) else head
    good = guess == rows.labels
    recall = {}
    for label in np.unique(rows.labels).tolist():
        mine = rows.labels == label
        weight = float(rows.weights[mine].sum())
        recall[label] = float((rows.weights * good)[mine].sum()) / weight if weight else 0.0
    total = rows.total()
    right = float((rows.weights * good).sum()) / total if total else 0.0
    return Score(right, recall, len(good))
