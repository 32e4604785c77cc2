"""What lessons are kept from: two tables of routing.db, and bounds on both."""

import itertools

import pytest

from gateway import lessons
from gateway.lessons import IN_FORCE, REFUSED, REPLACED, Known, Lessons, Version
from gateway.routing_db import RoutingDb

HERE, OTHER, THIRD = b"here-gw.", b"other-gw", b"third-gw"
DOMAINS = (b"domain-1", b"domain-2")
MODEL = b"model-01"


@pytest.fixture
def db(tmp_path):
    made = RoutingDb(tmp_path / "routing.db")
    yield made
    made.close()


def known(i, gateway, domain, label, confirmed):
    return Known(
        i.to_bytes(16, "big"), gateway, b"agent-01", domain, MODEL, label, label, label, 200,
        confirmed, None, 0, 1_800_000_000 + i, bytes(64),
    )  # fmt: skip


def version(number, state=IN_FORCE):
    return Version(DOMAINS[0], MODEL, number, 0, state, [b"row"], {bytes(16): 1}, {"right": 0.5})


def test_the_newest_of_each_label_stay(db, monkeypatch):
    """Of every domain; local ones by themselves, all other gateways' together."""
    monkeypatch.setattr(lessons, "CONFIRMED_KEPT", 4)
    monkeypatch.setattr(lessons, "GUESSES_KEPT", 2)
    number = itertools.count()
    rows = [
        known(next(number), gateway, domain, label, confirmed)
        for _ in range(5)
        for gateway in (HERE, OTHER, THIRD)
        for domain in DOMAINS
        for label in range(3)
        for confirmed in (True, False)
    ]
    kept = Lessons(db, HERE)
    assert kept.add(rows) == len(rows) == kept.add(rows) + 180
    kept.prune()
    for domain, ours in itertools.product(DOMAINS, (True, False)):
        for label, confirmed in itertools.product(range(3), (True, False)):
            mine = [
                row for row in rows
                if (row.domain, row.label, row.confirmed) == (domain, label, confirmed)
                and (row.gateway == HERE) is ours
            ]  # fmt: skip
            found = [
                row
                for row in kept.known(domain, ours)
                if (row.label, row.confirmed) == (label, confirmed)
            ]
            assert [r.outcome for r in found] == [
                r.outcome for r in mine[-4 if confirmed else -2 :]
            ]


def test_the_newest_heads_stay(db):
    kept = Lessons(db, HERE)
    for number in range(1, 31):
        kept.keep(version(number))
    kept.keep(version(31, REFUSED))
    kept.keep(version(32, REFUSED))
    found = kept.versions(DOMAINS[0], MODEL)
    assert [one.version for one in found] == [32, *range(30, 15, -1)]
    assert kept.in_force(DOMAINS[0], MODEL) == version(30)
    assert {one.state for one in found[2:]} == {REPLACED}
