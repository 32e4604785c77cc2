"""What is asked and what is answered: the vocabulary of queries. See query.py."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.cells import LABELS_MOST
from gateway.voucher import Facts, Voucher

# What updates and lapsed pointers leave behind in a medium is nobody's fault.
USUAL = ("replayed", "expired")
Label = int | None  # None: fingerprints of agents


@dataclass(frozen=True, slots=True)
class Question:
    """labels: (label, weight) with the likeliest first; weights 1..255 share the budget.
    k: hits wanted for each label.  without: outcome ids that are no answer.
    here_only: ask nobody.  ask_near: show origins the vector, so that they can add what is
    like it and was not announced.  follow: pointers of a label that are followed at most, 0 for
    the engine's usual."""

    domain: bytes
    vector: bytes
    labels: tuple[tuple[int, int], ...]
    k: int = 10
    deadline_s: float = 2.0
    without: frozenset[bytes] = frozenset()
    here_only: bool = False
    ask_near: bool = True
    follow: int = 0


@dataclass(frozen=True, slots=True)
class Hit:
    """One outcome found. label: as judged, where it was judged.  score: of the domain's
    similarity, more is nearer.  voucher: its proof, b"" for one's own."""

    gateway: bytes
    outcome: bytes
    label: int
    vector: bytes
    confidence: int | None
    result: int | None
    facts: Facts
    score: float
    voucher: bytes
    local: bool


@dataclass(slots=True)
class Answer:
    """hits: label -> nearest first. The rest says what it cost and what is missing."""

    hits: dict[int, list[Hit]] = field(default_factory=dict)
    lookups: int = 0
    unanswered: int = 0  # of these
    messages: int = 0
    pointers: int = 0
    origins: dict[bytes, str] = field(default_factory=dict)  # asked -> "" or why no answer
    fetched: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)  # what is not set up

    @property
    def silent(self) -> int:
        return sum(bool(reason) for reason in self.origins.values())

    def missed(self) -> list[str]:
        """What a reader of the answer should know about its gaps, in words."""
        words = list(self.notes)
        if self.silent:
            words.append(f"{self.silent} of {len(self.origins)} origins did not answer")
        if self.unanswered:
            words.append(f"{self.unanswered} of {self.lookups} lookups were not answered")
        bad = sum(n for reason, n in self.rejected.items() if reason not in USUAL)
        if bad:
            words.append(f"{bad} values were not believed")
        return words


def label_of(voucher: Voucher) -> int:
    """The label as judged, else as the device had it."""
    judged = voucher.facts.judged
    if judged is not None and judged[1] is not None:
        return judged[1]
    return int(voucher.record.outcome.label)


def hit_of(voucher: Voucher) -> Hit:
    outcome = voucher.record.outcome
    judged = voucher.facts.judged
    result = judged[0] if judged is not None and judged[0] is not None else outcome.result
    return Hit(
        voucher.gateway, voucher.facts.outcome, label_of(voucher), outcome.vector,
        outcome.confidence, result, voucher.facts, 0.0, voucher.raw, False,
    )  # fmt: skip


def likely_labels(
    own: Sequence[tuple[int, int]], votes: Sequence[int], known: dict[int, int], labels: int
) -> tuple[tuple[int, int], ...]:
    """Up to four labels to ask about when nobody named one.

    own: (label, confidence) the device said.  votes: labels of local neighbours, nearest first.
    known: label -> outcomes held here.  labels: how many the domain has.  Places that are
    left go to the labels least known here: what one has never seen is what others can tell.
    """
    weights: dict[int, int] = {}
    for label, confidence in own:
        weights[label] = max(weights.get(label, 0), 64 + confidence // 2)
    for place, label in enumerate(votes[:16]):
        weights[label] = min(255, weights.get(label, 0) + 24 - place)
    ranked = sorted(weights.items(), key=lambda pair: (-pair[1], pair[0]))[:LABELS_MOST]
    chosen = dict(ranked)
    for label in sorted(range(labels), key=lambda lab: (known.get(lab, 0), lab)):
        if len(chosen) >= LABELS_MOST:
            break
        chosen.setdefault(label, 32)
    return tuple(chosen.items())
