"""routing.db: what is kept, bounds on all of it, and a damaged file."""

import hashlib
import os
import sqlite3
import stat

import numpy as np
import pytest

from edge_agent.errors import StoreError
from gateway import routing_db
from gateway.pointer import AGENT, OUTCOME, WITHDRAWAL
from gateway.routing_db import RoutingDb
from gateway.routing_rows import Announced, Local

DOMAIN = b"domain-1"
AGENT_ID = b"agent-01"
NOW = 1_800_000_000


@pytest.fixture
def db(tmp_path):
    made = RoutingDb(tmp_path / "routing.db")
    yield made
    made.close()


def reopened(db):
    db.close()
    return RoutingDb(db.path)


def entry(i, **changes):
    row = Announced(
        hashlib.sha256(b"%d" % i).digest()[:16], b"k" * 20, OUTCOME, DOMAIN, 1, 3, (0, 1, 1), 7,
        NOW + 100, NOW, 1, 200, 0, i, bytes(32), b"value",
    )  # fmt: skip
    return row._replace(**changes)


def outcome(i, label=1, cell=0, vector=None):
    id_ = hashlib.sha256(b"o%d" % i).digest()[:16]
    return Local(i, id_, DOMAIN, label, cell, 200, None, vector or bytes([i % 128]) * 64)


def test_it_is_private_and_comes_back(db):
    assert stat.S_IMODE(db.path.stat().st_mode) == 0o600
    db.set_meta("position", 12)
    with db.batch():
        db.announce(entry(1))
        db.announce(entry(2, kind=AGENT, label=None, thing=AGENT_ID, outcome=None, path=(1,) * 28))
    db = reopened(db)
    assert db.meta("position") == 12 and db.meta("nothing", 5) == 5
    assert sorted(db.announced()) == sorted(
        [entry(1), entry(2, kind=AGENT, label=None, thing=AGENT_ID, outcome=None, path=(1,) * 28)]
    )
    db.close()


def test_one_row_per_thing_and_key(db):
    db.announce(entry(1))
    db.announce(entry(1, epoch=8, kind=WITHDRAWAL))
    db.announce(entry(1, key=b"l" * 20))
    assert {row.epoch for row in db.announced_at(entry(1).thing)} == {7, 8}
    assert [row.key for row in db.announced(NOW + 99)] == [b"k" * 20, b"l" * 20]
    assert list(db.announced(NOW + 100)) == []
    assert db.forget_expired(NOW + 99) == 0 and db.forget_expired(NOW + 100) == 2


def test_all_or_nothing(db):
    with pytest.raises(RuntimeError), db.batch():
        db.announce(entry(1))
        with db.batch():
            db.announce(entry(2))
        raise RuntimeError
    assert list(db.announced()) == []


def test_splits(db):
    for path, expires in (((0,), 10), ((0, 1), 20), ((0,), 5), ((1,) * 28, 20)):
        db.learn_split(DOMAIN, 1, 3, path, expires)
    db.learn_split(DOMAIN, 1, None, (1,), 20)
    assert db.splits(DOMAIN, 1, 3, 9) == [(0,), (0, 1), (1,) * 28]
    assert db.splits(DOMAIN, 1, 3, 10) == [(0, 1), (1,) * 28]
    assert db.splits(DOMAIN, 1, None, 0) == [(1,)] and db.splits(DOMAIN, 2, 3, 0) == []
    db.forget_expired(15)
    assert db.splits(DOMAIN, 1, 3, 0) == [(0, 1), (1,) * 28]


def test_local_outcomes(db):
    db.add_local(outcome(i, label=i % 3, cell=i % 8) for i in range(300))
    one = outcome(7, label=1, cell=7)
    assert db.local(one.id) == one and db.local(bytes(16)) is None
    rows, table = db.candidates(DOMAIN, 2)
    assert {row.label for row in rows} == {2} and table.shape == (100, 64)
    assert bytes(table[3]) == rows[3].vector
    assert db.judge(one.id, 2, 1) and not db.judge(bytes(16), 2, 1)
    assert (db.local(one.id).label, db.local(one.id).result) == (2, 1)
    assert db.label_counts(DOMAIN) == {0: 100, 1: 99, 2: 101}
    db.drop_local([7, 8])
    assert db.local(one.id) is None and len(db.candidates(DOMAIN)[0]) == 298
    rows, table = db.candidates(b"other")
    assert rows == [] and table.shape == (0, 64)
    db.set_cells([(5, 9)])
    assert db.local_rows(8, 1)[0].cell == 5
    assert [row.outcome for row in db.local_rows(297, 9)] == [298, 299]


def test_a_big_table_is_read_by_cells(db, monkeypatch):
    monkeypatch.setattr(routing_db, "SCAN_ROWS", 1000)
    db.add_local(outcome(i, cell=i % 50) for i in range(2000))
    rows, _ = db.candidates(DOMAIN, 1, cells=range(50), enough=100)
    assert {row.cell for row in rows} == set(range(routing_db.PROBES))
    # Empty cells are not counted as an answer.
    rows, _ = db.candidates(DOMAIN, 1, cells=[*range(50, 90), *range(50)], enough=100)
    assert len(rows) >= 100


def test_a_hundred_thousand_are_read_quickly(db):
    import time

    vectors = np.random.default_rng(1).integers(-127, 128, (100_000, 64)).astype(np.int8)
    db.add_local(
        outcome(i, label=i % 7, cell=i % 256, vector=vectors[i].tobytes()) for i in range(100_000)
    )
    begin = time.perf_counter()
    rows, table = db.candidates(DOMAIN, 3, cells=range(256))
    one = time.perf_counter() - begin
    begin = time.perf_counter()
    every, _ = db.candidates(DOMAIN, None, cells=range(256))
    seconds = time.perf_counter() - begin
    print(
        f"\nof 100,000 outcomes {len(rows)} of one label in {one * 1000:.1f} ms, "
        f"{len(every)} of all in {seconds * 1000:.1f} ms"
    )
    assert 400 <= len(rows) < 5000 and 400 <= len(every) < 5000
    assert one < 0.5 and seconds < 0.5


def test_the_nearest_of_ones_own(db):
    vectors = np.random.default_rng(2).integers(-127, 128, (200, 64)).astype(np.int8)
    db.add_local(outcome(i, label=i % 2, vector=vectors[i].tobytes()) for i in range(200))
    query = vectors[17].astype(float)
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    for label in (None, 1):
        expected = [i for i in np.argsort(-cosines) if label is None or i % 2 == label][:10]
        found = db.near(DOMAIN, label, vectors[17].tobytes(), 10)
        assert [near.outcome for near in found] == expected
        assert np.allclose([near.score for near in found], cosines[expected])
    lengths = np.linalg.norm(vectors - query, axis=1)
    found = db.near(DOMAIN, None, vectors[17].tobytes(), 5, "l2")
    assert [near.outcome for near in found] == np.argsort(lengths)[:5].tolist()
    assert db.near(b"nothing.", None, bytes(64), 5) == []


def test_interests_are_bounded_and_expire(db):
    ids = [db.add_interest(AGENT_ID, DOMAIN, None, bytes([i]) * 64, 9, NOW + i) for i in range(100)]
    db.add_interest(b"agent-02", DOMAIN, 4, bytes(64), 9, NOW + 50)
    assert [i.id for i in db.interests(NOW)][:-1] == ids[-routing_db.INTERESTS_KEPT :]
    assert len(db.interests(NOW + 60)) == 39
    db.drop_interest(ids[-1])
    assert len(db.interests(0)) == 38


def test_found_is_handed_over_once(db):
    def add(i, agent=AGENT_ID):
        return db.add_found(agent, bytes([i]) * 16, b"gateway1", DOMAIN, 2, 0.5, NOW, 1, b"v")

    assert add(1) and not add(1) and add(1, b"agent-02") and add(2)
    assert [(f.agent, f.outcome[0]) for f in db.found()] == [
        (AGENT_ID, 1), (b"agent-02", 1), (AGENT_ID, 2),
    ]  # fmt: skip
    first = db.found(AGENT_ID, limit=1)
    assert first[0].voucher == b"v" and first[0].score == 0.5 and first[0].taken_ms is None
    db.take_found([first[0].id], 5)
    assert [f.outcome[0] for f in db.found(AGENT_ID)] == [2]
    assert not add(1)


def test_found_is_bounded(db, monkeypatch):
    monkeypatch.setattr(routing_db, "FOUND_KEPT", 10)
    for i in range(30):
        db.add_found(AGENT_ID, bytes([i]) * 16, b"gateway1", DOMAIN, 2, 0.5, NOW, 1, b"v")
    assert [f.outcome[0] for f in db.found()] == list(range(20, 30))


def test_audit_and_counters(db, monkeypatch):
    monkeypatch.setattr(routing_db, "AUDIT_KEPT", 100)
    for i in range(700):
        db.audit(b"gateway1", "fetch", i, NOW, "not-allowed" if i % 2 else "ok", "x" * 500)
    rows = db.audited(1000)
    assert 100 <= len(rows) <= 356 and rows[0]["count"] == 699
    assert rows[0]["verdict"] == "not-allowed" and len(rows[0]["detail"]) == 200
    db.count_rejected("expired", 3, 1)
    db.count_rejected("expired", 4, 2)
    assert db.rejected() == {"expired": 7}


@pytest.mark.parametrize("damage", ["noise", "page", "short"])
def test_a_damaged_file_is_set_aside(db, damage):
    db.add_local(outcome(i) for i in range(2000))
    db.close()
    raw = db.path.read_bytes()
    if damage == "noise":
        db.path.write_bytes(os.urandom(4096))
    elif damage == "page":
        # Every page but the first is overwritten: the header still looks well.
        db.path.write_bytes(raw[:4096] + b"\xa5" * (len(raw) - 4096))
    else:
        db.path.write_bytes(raw[: len(raw) // 2])
    again = RoutingDb(db.path)
    assert again.set_aside and again.candidates(DOMAIN)[0] == []
    assert db.path.with_name("routing.db.bad").exists()
    again.add_local([outcome(1)])
    again = reopened(again)
    assert not again.set_aside and len(again.candidates(DOMAIN)[0]) == 1
    again.close()


def test_a_newer_schema_is_left_alone(db):
    db.run("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="schema 99"):
        RoutingDb(db.path)
    assert not db.path.with_name("routing.db.bad").exists()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(StoreError, match="routing"):
        RoutingDb(tmp_path / "none" / "routing.db")


def test_another_process_may_read(db):
    db.add_local([outcome(1)])
    other = sqlite3.connect(db.path)
    assert other.execute("SELECT count(*) FROM local").fetchone() == (1,)
    other.close()
