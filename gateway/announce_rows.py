"""What the policy of announcing (announce.py) works on: settings, outcomes, entries, actions."""

from dataclasses import dataclass
from typing import NamedTuple

from gateway.cells import Path
from gateway.pointer import AHEAD_MAX_S, CONFIRMED, SYNTHESISED
from gateway.routing_rows import Announced

ANNOUNCE, RENEW, WITHDRAW = "announce", "renew", "withdraw"
DAY_S = 86_400


@dataclass(frozen=True)
class Settings:
    """Limits of one domain.

    mode: "outcome" or "cell".  merge_above: likeness from which two are nearly the same, None to
    merge nothing.  novel_below: likeness of the nearest neighbour below which one is novel.
    A likeness reads as a cosine whatever the domain's measure is (gateway.likeness).
    unsure_below: confidence.  per_cell: pointers per label and cell.  per_day: new ones.
    held: standing at once.  waiting: at most.  lifetime_s: of a pointer until renewed.
    keep_s, keep_confirmed_s: how long since it or one like it was last seen.
    """

    mode: str = "outcome"
    merge_above: float | None = 0.97
    novel_below: float = 0.8
    unsure_below: int = 128
    per_cell: int = 16
    per_day: int = 2000
    held: int = 20_000
    waiting: int = 4096
    lifetime_s: int = 2 * DAY_S
    keep_s: int = 30 * DAY_S
    keep_confirmed_s: int = 365 * DAY_S

    def __post_init__(self) -> None:
        if self.mode not in ("outcome", "cell"):
            raise ValueError(f"mode {self.mode!r}: outcome or cell")
        if not 60 <= self.lifetime_s <= AHEAD_MAX_S:
            raise ValueError(f"lifetime_s {self.lifetime_s}: 60..{AHEAD_MAX_S}")
        if min(self.per_cell, self.per_day, self.held, self.waiting) < 1:
            raise ValueError("per_cell, per_day, held and waiting: at least 1")
        limits = {"merge_above": self.merge_above, "novel_below": self.novel_below}
        for name, value in limits.items():
            if value is not None and not -1 <= value <= 1:
                raise ValueError(f"{name} {value}: -1..1, as the cosine of two vectors")


class Candidate(NamedTuple):
    """An outcome to consider. row: in gateway.db. decoded: 64 int8 of its decoded sketch.

    cell: its path down to the codebook's regions.
    """

    row: int
    id: bytes
    label: int
    confidence: int
    confirmed: bool
    synthesised: bool
    decoded: bytes
    cell: Path


class Entry:
    """What stands in the network, or is to stand there."""

    __slots__ = (
        "cell", "confidence", "decoded", "epoch", "expires_s", "flags", "id", "label", "merged",
        "renew_s", "row", "seen_s", "since_s",
    )  # fmt: skip

    def __init__(self, one: Candidate, now_s: int) -> None:
        self.row = one.row
        self.id = one.id
        self.label = one.label
        self.confidence = one.confidence
        self.flags = CONFIRMED * one.confirmed | SYNTHESISED * one.synthesised
        self.decoded = one.decoded
        self.cell = one.cell
        self.merged = 0
        self.since_s = self.seen_s = now_s
        self.epoch = self.expires_s = self.renew_s = 0

    @property
    def confirmed(self) -> bool:
        return bool(self.flags & CONFIRMED)

    def __repr__(self) -> str:
        return f"Entry({self.id.hex()}, label {self.label}, epoch {self.epoch})"


class Action(NamedTuple):
    """what: ANNOUNCE, RENEW or WITHDRAW. reason: one of `Announcer.counts`.

    A withdrawal carries the epoch and the expiry that its tombstone needs.
    """

    what: str
    entry: Entry
    epoch: int
    expires_s: int
    reason: str


class Waiting(NamedTuple):
    """An entry that waits, in the order in which they are let out."""

    rank: int
    score: float
    doubt: int
    row: int
    entry: Entry


def restored(row: Announced, decoded: bytes, cell: Path) -> Entry:
    """The entry of a row of routing.db."""
    assert row.label is not None
    one = Candidate(
        row.outcome or 0,
        row.thing,
        row.label,
        row.confidence,
        bool(row.flags & CONFIRMED),
        bool(row.flags & SYNTHESISED),
        decoded,
        cell,
    )
    entry = Entry(one, row.since_s)
    entry.epoch, entry.expires_s, entry.merged = row.epoch, row.expires_s, row.merged
    return entry
