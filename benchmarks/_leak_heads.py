"""What the rows of a head give away about the outcomes that it was fitted to.

A head goes from a gateway to its own devices; who reads a device's mailbox has it, and knows
the head that was there before. Two questions of that stranger:

member    Was this outcome among those that the head was fitted to? Score: how much the loss of
          its true label fell from the base head to the new one. AUC 0.5 is guessing, 1 is
          certainty. Beside it the same of what federated averaging sends: all weights of the
          model after five local epochs on the same windows.
mean      What did the windows of a label look like on average? A linear decoder learns from
          sites that the stranger makes of the three people it knows: from the change of a
          label's row to the mean features of the windows behind it. R2 counts deviations from
          what the label alone tells, so 0 is as good as knowing the label.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from _leak_decoder import explained
from _leak_gradients import Victim, _forward, gradient

from gateway.heads import FloatHead, compiled, dequantised, evidence, fit, quantise

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Int8 = npt.NDArray[np.int8]

LABELS = 7
VECTOR_UNIT = 32.0  # of the numbers in a vector, about
EPOCHS, BATCH, RATE = 5, 10, 0.05  # of local training
PULL, STRONG = 1.0, 12.0  # to the base head: least and most that a gateway uses


class Site(NamedTuple):
    """Windows of one person that do not overlap. features in the units of the model's input."""

    vectors: Int8
    features: Floats
    labels: Ints

    def take(self, rows: Ints) -> "Site":
        return Site(self.vectors[rows], self.features[rows], self.labels[rows])


def refitted(
    base: FloatHead, local: Site, fetched: "Site | None" = None, pull: float = PULL
) -> FloatHead:
    """The head that a gateway makes, in the integers that its device gets."""
    vectors, labels = local.vectors, local.labels
    if fetched is not None:
        vectors = np.concatenate([vectors, fetched.vectors])
        labels = np.concatenate([labels, fetched.labels])
    head = fit(base, evidence(vectors, labels), LABELS, pull)
    return dequantised(compiled(quantise(head, 1, b"")))


def loss(logits: Floats, labels: Ints) -> Floats:
    top = logits.max(1)
    spread = np.log(np.exp(logits - top[:, None]).sum(1)) + top
    return np.asarray(spread - logits[np.arange(len(labels)), labels])


def auc(members: Floats, others: Floats) -> float:
    from sklearn.metrics import roc_auc_score

    truth = np.r_[np.ones(len(members)), np.zeros(len(others))]
    return float(roc_auc_score(truth, np.r_[members, others]))


def trained_on(net: Victim, site: Site, rng: np.random.Generator) -> Victim:
    """The model after local training, as federated averaging sends it."""
    weights = [w.copy() for w in net.weights]
    biases = [b.copy() for b in net.biases]
    truth = np.eye(LABELS)[site.labels]
    for _ in range(EPOCHS):
        for rows in np.array_split(rng.permutation(len(truth)), max(1, len(truth) // BATCH)):
            slope = gradient(Victim(weights, biases), site.features[rows], truth[rows])
            for k in range(len(weights)):
                weights[k] -= RATE * slope.weights[k]
                biases[k] -= RATE * slope.biases[k]
    return Victim(weights, biases)


def membership(
    base: FloatHead, net: Victim, sites: "list[Site]", count: int, seeds: int, fetched: int
) -> "dict[str, float]":
    """Mean AUC over sites and draws of `count` members each."""
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        for i, site in enumerate(sites):
            order = rng.permutation(len(site.labels))
            inside, outside = site.take(order[:count]), site.take(order[count:])
            rest = [s for k, s in enumerate(sites) if k != i]
            others = Site(*(np.concatenate(part) for part in zip(*rest, strict=True)))
            chosen = others.take(rng.choice(len(others.labels), fetched, replace=False))
            heads = {
                "head, own outcomes": refitted(base, inside),
                "head, own outcomes, strong pull": refitted(base, inside, None, STRONG),
                f"head, own and {fetched} fetched": refitted(base, inside, chosen),
            }
            for name, head in heads.items():
                fell = [
                    loss(base.logits(s.vectors), s.labels) - loss(head.logits(s.vectors), s.labels)
                    for s in (inside, outside)
                ]
                found.setdefault(name, []).append(auc(*fell))
            own = trained_on(net, inside, rng)
            fell = []
            for s in (inside, outside):
                rows = np.arange(len(s.labels))
                before, after = (_forward(n, s.features)[1][rows, s.labels] for n in (net, own))
                fell.append(np.log(after + 1e-12) - np.log(before + 1e-12))
            found.setdefault("whole model after local training", []).append(auc(*fell))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _rows(
    base: FloatHead, sites: "list[Site]", count: int, draws: int, rng: np.random.Generator
) -> "tuple[Floats, Floats, Ints]":
    """(changes of rows (n, 65), mean features behind each (n, features), label of each)."""
    changes, means, labels = [], [], []
    for _ in range(draws):
        site = sites[rng.integers(len(sites))]
        mine = site.take(rng.choice(len(site.labels), min(count, len(site.labels)), replace=False))
        head = refitted(base, mine)
        for label in np.unique(mine.labels).tolist():
            # The bias in units in which it is about as large as the weights.
            moved = head.weights[label] - base.weights[label]
            changes.append(np.r_[moved, (head.bias[label] - base.bias[label]) / VECTOR_UNIT])
            means.append(mine.features[mine.labels == label].mean(0))
            labels.append(label)
    return np.array(changes), np.array(means), np.array(labels)


def mean_features(
    base: FloatHead, known: "list[Site]", sites: "list[Site]", count: int, draws: int
) -> "dict[str, float]":
    """R2 of the mean features behind a row: by label alone, and from the row."""
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    seen, means, labels = _rows(base, known, count, draws, rng)
    target, wanted, wanted_labels = _rows(base, sites, count, draws // 2, rng)
    # The direction of a change tells, not its size; of next to no change, nothing does.
    least = 0.1 * float(np.median(np.linalg.norm(seen, axis=1)))
    seen, target = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), least)
        for rows in (seen, target)
    )
    usual = np.array([means[labels == label].mean(0) for label in range(LABELS)])

    def inputs(rows: Floats, of: Ints) -> Floats:
        # Each label has a decoder of its own, and all share one.
        own = np.zeros((len(rows), LABELS, rows.shape[1]))
        own[np.arange(len(rows)), of] = rows
        return np.c_[rows, own.reshape(len(rows), -1)]

    decoder = Ridge(alpha=1.0).fit(inputs(seen, labels), means - usual[labels])
    guess = usual[wanted_labels] + decoder.predict(inputs(target, wanted_labels))
    return {
        "by label alone": explained(wanted, usual[wanted_labels]),
        "from the row": explained(wanted, guess),
    }
