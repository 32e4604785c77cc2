"""Which outcomes of others go into a device's mailbox, so that it can decide better alone. Pure.

A head knows what can be said about a label with one straight cut. What it cannot, a few cases do:
of the labels that a device has trouble with, or has never met, the outcomes nearest to what it
was unsure of or wrong about. Nearest within each label, as for fetching. Labels that go well get
none: a vote that is not needed can only do harm. For the same reason neighbours of a device that
has a head speak softly: together they were measured to be worse than the head alone, see DESIGN.md.
"""

from collections.abc import Sequence

import numpy as np

from edge_agent.synthesis import (
    CONFIRMED,
    DEPTH_MAX,
    SYNTHESISED,
    Neighbour,
    encode_neighbour,
)
from gateway.heads import Floats, unit
from gateway.learner import CONFIRMED as CONFIRMED_WEIGHT
from gateway.learner import ENOUGH, GOOD, weigh
from gateway.lessons import Known
from gateway.watch import UNSURE_BELOW

PER_LABEL = 3
STEP = 32  # weights are rounded to this, so that age does not change them every day
SOFT = 32  # weight at most beside a head


def choose(
    mine: Sequence[Known],
    others: Sequence[Known],
    labels: int,
    most: int,
    now_s: float,
    loudest: int = 255,
) -> list[tuple[bytes, bytes]]:
    """(outcome id, body of the box), the most wanted label first.

    mine: what the device has lived through.  others: what is believed of other gateways.
    loudest: weight at most.
    """
    if not mine or not others:
        return []
    trouble = _trouble(mine, labels)
    hard = [row for row in mine if row.said != row.label or row.confidence < UNSURE_BELOW]
    asked = _unit(hard or mine)
    usable = [row for row in others if row.depth < DEPTH_MAX and row.label < labels]
    if not usable:
        return []
    alike = (_unit(usable) @ asked.T).max(1)
    found: list[tuple[bytes, bytes]] = []
    for label in sorted(range(labels), key=lambda one: (-trouble[one], one)):
        if trouble[label] <= 0:
            break
        of_label = [i for i, row in enumerate(usable) if row.label == label]
        of_label.sort(key=lambda i: (not usable[i].confirmed, -alike[i], usable[i].outcome))
        for i in of_label[:PER_LABEL]:
            found.append((usable[i].outcome, _body(usable[i], now_s, loudest)))
    return found[:most]


def _trouble(mine: Sequence[Known], labels: int) -> Floats:
    """For each label how much help is wanted: 1 when it was never met, 0 when all goes well."""
    count, bad = np.zeros(labels), np.zeros(labels)
    for row in mine:
        if row.label < labels:
            count[row.label] += 1
            bad[row.label] += row.said != row.label
    share = np.where(count > 0, bad / np.maximum(count, 1), 1.0)
    share[(count >= ENOUGH) & (share < GOOD)] = 0.0
    found: Floats = share
    return found


def _body(row: Known, now_s: float, loudest: int) -> bytes:
    """A confirmed outcome of today counts 255, what a device was certain of a quarter."""
    weight = weigh(row.confirmed, row.confidence, now_s - row.utc_s, row.depth) / CONFIRMED_WEIGHT
    whole = min(loudest, max(1, round(weight * 255 / STEP) * STEP))
    flags = (CONFIRMED if row.confirmed else 0) | (SYNTHESISED if row.depth else 0)
    return encode_neighbour(Neighbour(row.outcome, row.vector, row.label, whole, flags, row.depth))


def _unit(rows: Sequence[Known]) -> Floats:
    return unit(np.frombuffer(b"".join(row.vector for row in rows), np.int8).reshape(len(rows), -1))
