"""What people say about outcomes, on its way to gateway.db: once, durably, checked."""

import json
import os
import sqlite3

import pytest
from gateway_kit import DOMAIN, NOW, Bench

from edge_agent.errors import ConfigError
from edge_agent.frame import outcome_id
from gateway.judge import numbers, read_judgement
from gateway.mailbox import Mailbox
from gateway.rounds import Rounds
from gateway.search import Search


class Desk:
    """A bench that also takes judgements."""

    def __init__(self, folder):
        self.bench = Bench(folder)
        self.rounds = Rounds(folder / "mailbox.db", self.bench.custody)
        self.at_ms = 0

    def close(self):
        self.rounds.close()
        self.bench.close()

    def say(self, device, outcome, **fields):
        """A message on the topic; then a round."""
        fields = {"outcome": outcome.hex(), "result": "confirmed", **fields}
        raw = json.dumps({k: v for k, v in fields.items() if v is not None}).encode()
        assert self.rounds.judged(device.topic("judge"), raw)
        self.turn()

    def turn(self, times=1):
        for _ in range(times):
            self.at_ms += 1000
            self.bench.now += 1000
            self.rounds.turn_judges(self.bench.now, self.at_ms)

    def send(self, device, *frames):
        plan = self.bench.custody.judge([(device.topic(), f) for f in frames], self.bench.now)
        self.bench.custody.commit(plan)
        self.bench.custody.answers(plan)
        self.rounds.heard(plan)
        return [outcome_id(frame) for frame in frames]

    def judgement(self, outcome):
        return self.bench.store.judgement(outcome)

    def waiting(self):
        return [one.outcome for one in self.rounds.mailbox().judgements()]

    @property
    def refused(self):
        return self.rounds.counters.counts["judgements_refused"]


@pytest.fixture
def desk(tmp_path):
    made = Desk(tmp_path)
    yield made
    made.close()


def test_confirmed_corrected_and_said_twice(desk):
    device = desk.bench.device()
    one, two = desk.send(device, device.outcome(1, label=1), device.outcome(2, label=2))
    desk.say(device, one)
    assert desk.judgement(one) == (0, 1)  # the label that the device stated
    desk.say(device, two, result="corrected", label="rest")
    assert desk.judgement(two) == (1, 0)
    for _ in range(3):
        desk.say(device, two, result=1, label=0)
    # Once in the log that routing follows.
    assert [row[1:] for row in desk.bench.store.judgements(0, 10)] == [(one, 0, 1), (two, 1, 0)]
    assert desk.rounds.counters.counts["judgements"] == 2
    # The newest counts, also against what the device says.
    desk.say(device, two, result="confirmed")
    assert desk.judgement(two) == (0, 2)
    desk.send(device, device.feedback(3, two, label=1, result=1))
    assert desk.judgement(two) == (1, 1)
    assert desk.waiting() == [] and desk.refused == 0


def test_a_judgement_waits_for_its_outcome(desk):
    device = desk.bench.device()
    frame = device.outcome(1, label=2)
    desk.say(device, outcome_id(frame), result="corrected", label="lift")
    desk.turn(3)
    assert desk.waiting() == [outcome_id(frame)] and desk.judgement(outcome_id(frame)) is None
    # Through a restart, and a merge in the same commit.
    desk.rounds.close()
    desk.bench.crash()
    desk.rounds = Rounds(desk.rounds.path, desk.bench.custody)
    desk.turn()
    desk.bench.custody._merged = -5000
    desk.send(device, frame)
    desk.turn()
    assert desk.judgement(outcome_id(frame)) == (1, 1) and desk.waiting() == []


def test_an_old_outcome_is_found_a_little_at_a_time(desk, monkeypatch):
    monkeypatch.setattr("gateway.judge.SEARCH_FRAMES", 40)
    device = desk.bench.device()
    ids = []
    for block in range(10):
        ids += desk.send(device, *(device.outcome(block * 20 + i + 1) for i in range(20)))
    desk.say(device, ids[3])
    turns = 1
    while desk.judgement(ids[3]) is None:
        desk.turn()
        turns += 1
        assert turns < 20
    assert turns == 5
    # One that nobody has costs one way through the database, not one each second.
    desk.say(device, os.urandom(16))
    desk.turn(6)
    assert desk.rounds.judges._search.step(1) is False
    assert len(desk.waiting()) == 1


def test_what_waits_no_more_is_looked_for_no_more(desk, monkeypatch):
    monkeypatch.setattr("gateway.mail_judge.WAITING_MAX", 3)
    device = desk.bench.device()
    ids = [os.urandom(16) for _ in range(9)]
    for id_ in ids:
        desk.say(device, id_)
    assert desk.waiting() == ids[-3:] and len(desk.rounds.judges._search) == 3
    gauges = desk.rounds.counters.gauges
    assert (gauges["judgements_waiting"], gauges["judgements_given_up"]) == (3, 6)


def test_what_is_refused(desk):
    device, other = desk.bench.device(), desk.bench.device()
    (one,) = desk.send(device, device.outcome(1))
    judged = device.feedback(2, one)
    (about,) = desk.send(device, judged)
    good = {"outcome": one.hex(), "result": "confirmed"}
    bad = [
        {"result": "perhaps"}, {"result": 7}, {"label": "dance"}, {"label": 99}, {"result": True},
        {"result": None}, {"result": ["confirmed"]}, {"outcome": "00"}, {"outcome": 5},
        {"outcome": "zz" * 16}, {"result": "corrected"}, {"more": 1}, {"outcome": about.hex()},
    ]  # fmt: skip
    for i, change in enumerate(bad):
        fields = {**good, **change}
        desk.rounds.judged(device.topic("judge"), json.dumps(fields).encode())
        desk.turn()
        assert desk.refused == i + 1, change
    for raw in (b"", b"[]", b"{", b"\xff", b'"' + b"x" * 2000 + b'"', b"[" * 1000):
        desk.rounds.judged(device.topic("judge"), raw)
    assert desk.refused == len(bad) + 6
    # Another device's topic, nobody's, and what is no such topic.
    desk.say(other, one)
    desk.rounds.judged("qis/1/" + "ab" * 8 + "/judge", json.dumps(good).encode())
    desk.rounds.judged("qis/1/x/judge", json.dumps(good).encode())
    desk.turn()
    assert desk.refused == len(bad) + 9
    assert not desk.rounds.judged(device.topic("up"), b"")
    assert desk.judgement(one) == (0, 1) and desk.waiting() == []  # the device's own


def test_a_locked_mailbox_keeps_judgements_in_memory(desk):
    device = desk.bench.device()
    (one,) = desk.send(device, device.outcome(1))
    desk.turn()
    other = sqlite3.connect(desk.rounds.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    desk.say(device, one)
    for _ in range(1100):
        desk.rounds.judged(
            device.topic("judge"),
            json.dumps({"outcome": os.urandom(16).hex(), "result": 0}).encode(),
        )
    assert desk.judgement(one) is None and desk.refused == 101
    other.execute("ROLLBACK")
    other.close()
    desk.turn(3)
    assert desk.judgement(one) == (0, 1)
    assert len(desk.waiting()) == 999


def test_those_that_wait_too_long_or_are_too_many_give_way(tmp_path):
    box = Mailbox(tmp_path / "mailbox.db")
    box.run("PRAGMA synchronous=OFF")
    ids = [os.urandom(16) for _ in range(1010)]
    for i, id_ in enumerate(ids):
        box.judge(id_, "confirmed", None, NOW + i)
    assert [one.outcome for one in box.judgements()] == ids[10:]
    assert box.judgements_given_up() == 10
    box.judge(ids[0], 1, 2, NOW + 31 * 86_400_000)
    assert [one[1:5] for one in box.judgements()] == [(ids[0], b"", 1, 2)]
    assert box.judgements_given_up() == 1010
    # The newest of an outcome replaces the one that waits.
    box.judge(ids[0], "corrected", "lift", NOW + 31 * 86_400_000)
    assert [one[3:5] for one in box.judgements()] == [("corrected", "lift")]
    box.close()


def test_numbers():
    assert numbers(DOMAIN, "confirmed", None, 2) == (0, 2)
    assert numbers(DOMAIN, 1, "turn", 0) == (1, 2)
    with pytest.raises(ConfigError, match="label"):
        numbers(DOMAIN, "corrected", None, 2)
    assert read_judgement({"outcome": "ab" * 16, "result": 0}) == (b"\xab" * 16, 0, None)


def test_search_reads_what_retention_left(tmp_path):
    bench = Bench(tmp_path)
    device = bench.device()
    frames = [device.outcome(i + 1) for i in range(6)]
    bench.send(device, *frames[:3])
    bench.send(device, *frames[3:])
    rows = [row for (row,) in bench.rows("id")]
    bench.store.begin()
    bench.store.delete_outcomes([rows[4]])
    bench.store.replace_block(rows[3], [frames[3], b"", frames[5]])
    bench.store.commit()
    search = Search(bench.store)
    search.want(outcome_id(frame) for frame in frames)
    while search.step(2):
        pass
    assert search.found == {
        outcome_id(frames[i]): rows[i] for i in range(6) if i != 4
    } and len(search) == 1  # fmt: skip
    bench.close()
