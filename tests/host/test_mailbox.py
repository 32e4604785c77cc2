"""What waits for devices: order, quotas, coalescing, expiry, and what became of it."""

import os
import sqlite3
import stat
import threading
import time

import pytest

from edge_agent.errors import StoreError
from gateway.mailbox import CLEAR, HEAD_KEY, NEIGHBOUR, ROW, Mailbox
from gateway.postman import ADOPT, DOUBT, MORE, SAME

AGENT, OTHER = b"\x01" * 8, b"\x02" * 8
NOW = 1_800_000_000_000


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def box(tmp_path, clock):
    made = Mailbox(tmp_path / "mailbox.db", now_ms=clock)
    yield made
    made.close()


def known(box, agent=AGENT, taken=0):
    """The device was asked where it is, and has said so."""
    assert box.seen(agent, taken, None, 100, 100, NOW) == ADOPT
    return box


def bodies(items):
    return [item.body for item in items]


def test_urgent_first_then_in_order(box):
    known(box)
    for i, priority in enumerate((2, 1, 0, 2, 1, 0)):
        assert box.put(AGENT, NEIGHBOUR, b"%d" % i, priority, 0).reason == ""
    assert bodies(box.bind(AGENT, 4, NOW)) == [b"2", b"5", b"1", b"4"]
    # Later and more urgent: behind what has its number.
    box.put(AGENT, NEIGHBOUR, b"late", 0, 0)
    assert bodies(box.bind(AGENT, 8, NOW)) == [b"late", b"0", b"3"]
    assert [item.number for item in box.open_items(AGENT)] == [1, 2, 3, 4, 5, 6, 7]
    assert box.bind(AGENT, 8, NOW) == []


def test_delivery_is_known_to_the_sender(box, clock):
    known(box, taken=40)
    first = box.put(AGENT, NEIGHBOUR, b"a", 1, 0)
    second = box.put(AGENT, NEIGHBOUR, b"b", 1, 0)
    assert box.is_taken(first.id) is False
    assert [item.number for item in box.bind(AGENT, 8, NOW)] == [41, 42]
    assert box.waiting(AGENT) == (2, 2, 2)
    assert box.seen(AGENT, 40, None, 101, 0, NOW) == SAME
    assert box.seen(AGENT, 41, None, 101, 0, NOW + 5) == MORE
    assert box.is_taken(first.id) and box.is_taken(second.id) is False
    (done,) = box.taken(AGENT)
    assert (done.id, done.number, done.put_ms, done.taken_ms) == (first.id, 41, NOW, NOW + 5)
    assert box.waiting(AGENT) == (1, 1, 1)
    assert box.counts(AGENT) == {"put": 2, "taken": 1}
    assert box.is_taken(999) is None


def test_newest_of_a_key_waits(box):
    known(box)
    box.put(AGENT, NEIGHBOUR, b"old", 1, 0, b"k")
    new = box.put(AGENT, NEIGHBOUR, b"new", 1, 0, b"k")
    box.put(OTHER, NEIGHBOUR, b"other", 1, 0, b"k")
    assert bodies(box.bind(AGENT, 8, NOW)) == [b"new"]
    # It has a number now: the device may have it already. The next one comes behind it.
    box.put(AGENT, NEIGHBOUR, b"newer", 1, 0, b"k")
    box.put(AGENT, NEIGHBOUR, b"newest", 1, 0, b"k")
    assert bodies(box.bind(AGENT, 8, NOW)) == [b"newest"]
    assert bodies(box.open_items(AGENT)) == [b"new", b"newest"]
    assert box.counts(AGENT)["coalesced"] == 2
    # What is the same as the newest is not sent once more, whether it was taken or not.
    again = box.put(AGENT, NEIGHBOUR, b"newest", 1, 0, b"k")
    assert again.reason == "same"
    box.seen(AGENT, 2, None, 101, 0, NOW)
    assert box.put(AGENT, NEIGHBOUR, b"newest", 1, 0, b"k") == again
    assert box.put(AGENT, NEIGHBOUR, b"new", 1, 0, b"k").id not in (new.id, again.id)


def test_a_head_is_all_or_nothing(box):
    known(box)
    rows = [b"row %d" % i for i in range(5)]
    assert box.head(AGENT) == (None, None, None, NOW)
    box.put_head(AGENT, 1, [b"x"] * 12, 0)
    assert box.head(AGENT).queued == 1
    box.bind(AGENT, 8, NOW)
    # Four rows of version 1 still wait: they make room, the eight that are under way stay.
    made = box.put_head(AGENT, 2, rows, 0)
    assert box.put_head(AGENT, 2, rows, 0) == (made.id, "same")
    assert box.waiting(AGENT).items == 8 + 5
    box.seen(AGENT, 8, None, 101, 0, NOW)
    assert box.head(AGENT)[:3] == (2, None, None)
    box.bind(AGENT, 8, NOW)
    box.seen(AGENT, 12, None, 101, 0, NOW)
    assert box.head(AGENT)[:3] == (2, None, None)
    box.seen(AGENT, 13, 2, 101, 0, NOW + 9)
    assert box.head(AGENT) == (None, 2, 2, NOW + 9)
    box.seen(AGENT, 13, 2, 102, 0, NOW + 99)
    assert box.head(AGENT).since_ms == NOW + 9
    # A clear takes the place of a head that waits.
    box.put_head(AGENT, 3, rows, 0)
    box.put(AGENT, CLEAR, b"c", 1, 0, HEAD_KEY)
    assert [item.type for item in box.bind(AGENT, 8, NOW)] == [CLEAR]
    assert box.head(AGENT)[:3] == (None, 2, 2)
    assert box.put_head(AGENT, 70_000, rows, 0).reason == "bad-field"
    assert box.put_head(AGENT, 4, [], 0).reason == "bad-field"


def test_rows_that_were_dropped_make_no_head(tmp_path, clock):
    box = known(Mailbox(tmp_path / "small.db", items=10, now_ms=clock))
    box.put_head(AGENT, 1, [b"x"] * 10, 0, priority=2)
    box.bind(AGENT, 8, NOW)
    # Two rows wait; ten of something more urgent push them out, as one.
    for i in range(10):
        assert box.put(AGENT, NEIGHBOUR, b"%d" % i, 0, 0).id
    box.bind(AGENT, 8, NOW)
    box.bind(AGENT, 8, NOW)
    assert box.seen(AGENT, 18, None, 101, 0, NOW) == MORE
    assert box.head(AGENT)[:3] == (None, None, None)
    assert box.counts(AGENT)["gave way"] == 2
    box.close()


def test_quotas_of_items_and_bytes(tmp_path, clock):
    box = known(Mailbox(tmp_path / "small.db", items=4, size=100, now_ms=clock))
    for i in range(4):
        box.put(AGENT, NEIGHBOUR, b"%d" % i, 1 + i % 2, 0)
    # The least urgent give way, the oldest of them first.
    assert box.put(AGENT, NEIGHBOUR, b"4", 2, 0).id
    assert box.put(AGENT, NEIGHBOUR, b"5", 0, 0).id
    assert box.put(AGENT, NEIGHBOUR, b"6", 1, 0).id
    assert box.put(AGENT, NEIGHBOUR, b"bulk", 2, 0) == (None, "quota")
    assert box.put(OTHER, NEIGHBOUR, b"bulk", 2, 0).id
    assert bodies(box.bind(AGENT, 8, NOW)) == [b"5", b"0", b"2", b"6"]
    # Bytes: one large item takes the place of several.
    for i in range(3):
        box.put(AGENT, NEIGHBOUR, b"%d" % i * 30, 1, 0)
    assert box.put(AGENT, NEIGHBOUR, b"large" * 12, 1, 0).id
    assert [len(b) for b in bodies(box.bind(AGENT, 8, NOW))] == [30, 60]
    assert box.put(AGENT, NEIGHBOUR, b"x" * 101, 0, 0) == (None, "quota")
    assert box.put(AGENT, ROW, b"x" * 433, 0, 0) == (None, "too-long")
    assert box.put(AGENT, 0, b"", 0, 0) == (None, "bad-field")
    assert box.put(b"short", ROW, b"", 0, 0) == (None, "bad-field")
    assert box.put_head(AGENT, 1, [b"x"] * 5, 0) == (None, "quota")
    counts = box.counts(AGENT)
    assert counts["gave way"] == 3 + 2 and counts["refused quota"] == 1 + 1 + 5
    box.close()


def test_a_refused_item_leaves_what_waits_alone(tmp_path, clock):
    box = known(Mailbox(tmp_path / "small.db", items=2, now_ms=clock))
    box.put(AGENT, NEIGHBOUR, b"bulk", 2, 0, b"k")
    box.put(AGENT, NEIGHBOUR, b"urgent", 0, 0)
    assert box.put_head(AGENT, 1, [b"x"] * 3, 0) == (None, "quota")
    assert box.head(AGENT).queued is None
    assert bodies(box.bind(AGENT, 8, NOW)) == [b"urgent", b"bulk"]
    box.close()


def test_expiry(box, clock):
    known(box)
    box.put(AGENT, NEIGHBOUR, b"short", 1, NOW + 10)
    box.put(AGENT, NEIGHBOUR, b"long", 1, NOW + 1000)
    box.put_head(AGENT, 1, [b"r"] * 2, NOW + 10)
    assert box.put(AGENT, NEIGHBOUR, b"past", 1, NOW) == (None, "expired")
    clock.now = NOW + 10
    assert box.waiting(AGENT).items == 1 and box.head(AGENT).queued is None
    assert bodies(box.bind(AGENT, 8, clock.now)) == [b"long"]
    assert box.counts(AGENT)["expired"] == 3
    # What has its number is not taken back: the device may have it.
    clock.now = NOW + 5000
    assert bodies(box.open_items(AGENT)) == [b"long"]


def test_a_device_that_went_back_gets_what_it_lost(box, clock):
    known(box)
    box.put(AGENT, NEIGHBOUR, b"stays", 1, 0)
    box.put_head(AGENT, 1, [b"1a", b"1b"], 0)
    box.put(AGENT, NEIGHBOUR, b"expires", 1, NOW + 50)
    box.put(AGENT, NEIGHBOUR, b"first", 1, 0, b"k")
    box.bind(AGENT, 8, NOW)
    box.seen(AGENT, 5, 1, 101, 0, NOW)
    box.put_head(AGENT, 2, [b"2a", b"2b"], 0)
    box.put(AGENT, NEIGHBOUR, b"second", 1, 0, b"k")
    box.bind(AGENT, 8, NOW)
    box.seen(AGENT, 7, 1, 101, 0, NOW)
    clock.now = NOW + 100
    # An old hello is not believed: the question comes first.
    assert box.seen(AGENT, 0, None, 0, 0, clock.now) == DOUBT
    assert box.standing(AGENT) == (7, 8, 100)
    assert box.seen(AGENT, 0, None, 300, 300, clock.now) == ADOPT
    assert box.standing(AGENT) == (0, 0, 300)
    assert box.head(AGENT)[:3] == (2, None, None)
    # In the old order; without what expired or was followed by something newer.
    sent = box.bind(AGENT, 8, clock.now)
    assert bodies(sent) == [b"stays", b"2a", b"2b", b"second"]
    assert [item.number for item in sent] == [1, 2, 3, 4]
    # What an even older hello says counts no more.
    assert box.seen(AGENT, 3, 2, 299, 0, clock.now) == DOUBT
    assert box.seen(AGENT, 4, 2, 300, 0, clock.now) == MORE
    assert box.counts(AGENT)["went back"] == 1


def test_a_device_that_is_further_than_we_know(box):
    """mailbox.db came from a backup: numbers go on there; what was under way goes once more."""
    known(box)
    box.put(AGENT, NEIGHBOUR, b"a", 1, 0)
    box.bind(AGENT, 8, NOW)
    box.put(AGENT, NEIGHBOUR, b"b", 1, 0)
    assert box.seen(AGENT, 9, None, 150, 0, NOW) == DOUBT
    assert box.seen(AGENT, 9, None, 400, 400, NOW) == ADOPT
    assert [(i.number, i.body) for i in box.bind(AGENT, 8, NOW)] == [(10, b"a"), (11, b"b")]


def test_two_connections_see_each_other(box, tmp_path, clock):
    other = Mailbox(tmp_path / "mailbox.db", now_ms=clock)
    assert stat.S_IMODE((tmp_path / "mailbox.db").stat().st_mode) == 0o600
    before = box.foreign_changes()
    assert box.foreign_changes() == before
    other.put(AGENT, NEIGHBOUR, b"a", 1, 0)
    assert box.foreign_changes() != before
    assert box.waiting(AGENT).items == 1
    assert [b.agent for b in box.boxes()] == [AGENT] and box.with_mail() == [AGENT]
    other.forget(AGENT)
    assert box.boxes() == []
    other.close()


def test_a_lock_is_not_waited_for_long(box, tmp_path):
    patient = Mailbox(tmp_path / "mailbox.db", busy_ms=50)
    with box.batch():
        box.run("INSERT INTO meta VALUES ('x', 1)")
        started = time.monotonic()
        with pytest.raises(StoreError) as caught:
            patient.put(AGENT, NEIGHBOUR, b"a", 1, 0)
        assert time.monotonic() - started < 1.0
        assert patient.waiting(AGENT).items == 0  # reading does not wait for it
    assert caught.value.code == 16
    assert patient.put(AGENT, NEIGHBOUR, b"a", 1, 0).id
    patient.close()


def test_a_new_file_is_shared_from_its_first_moment(tmp_path):
    """Both processes start at once: the one that is not first waits, as it does for a lock."""
    path = tmp_path / "mailbox.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError) as caught:
        Mailbox(path, 50)
    assert caught.value.code == 16
    end = threading.Timer(0.2, other.execute, ("COMMIT",))
    end.start()
    Mailbox(path, 5000).close()
    end.join()
    other.close()


@pytest.mark.parametrize("where", ["at the start", "while open"])
def test_a_damaged_file_is_set_aside_by_one_and_followed_by_the_other(tmp_path, where):
    path = tmp_path / "mailbox.db"
    one, other = Mailbox(path), Mailbox(path)
    known(one)
    for _ in range(100):
        one.put(AGENT, NEIGHBOUR, os.urandom(100), 1, 0)
    one.run("PRAGMA wal_checkpoint(TRUNCATE)")
    if where == "at the start":
        one.close()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 20_000)
    if where == "at the start":
        one = Mailbox(path)
    else:
        one.run("PRAGMA cache_size = 0")
        with pytest.raises(StoreError):
            for _ in range(3):
                one.waiting(AGENT)
    assert one.set_aside == 1 and (tmp_path / "mailbox.db.bad").exists()
    assert one.waiting(AGENT).items == 0
    # The other had the damaged file open; its next step is on the new one.
    assert other.put(AGENT, NEIGHBOUR, b"a", 1, 0).id
    assert one.waiting(AGENT).items == 1 and other.set_aside == 0
    one.close()
    other.close()


def test_a_file_of_a_later_version_is_left_alone(tmp_path):
    path = tmp_path / "mailbox.db"
    Mailbox(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.commit()
    db.close()
    with pytest.raises(StoreError, match="schema 99"):
        Mailbox(path)
    assert not (tmp_path / "mailbox.db.bad").exists()
