"""The loop between broker and custody: order, failures, poison."""

import contextlib
import json
from types import SimpleNamespace

import pytest
from gateway_kit import Bench

from edge_agent.errors import StoreError
from gateway.mailbox import Mailbox
from gateway.mqtt import Bridge
from gateway.rounds import Rounds


class Recorder:
    """Stands where the broker is and notes what the bridge does, in order."""

    def __init__(self, events):
        self.events = events

    def publish(self, topic, payload, qos=0):
        self.events.append(("ack", topic.split("/")[2]))

    def ack(self, mid, qos):
        self.events.append(("puback", mid))

    def loop_write(self):
        pass

    def want_write(self):
        return False

    def disconnect(self):
        self.events.append("disconnect")

    def socket(self):
        return None


@pytest.fixture
def stage(tmp_path):
    bench = Bench(tmp_path)
    events = []

    class Edge(Bridge):
        def _client(self):
            return Recorder(events)

    config = SimpleNamespace(
        root="qis/1", batch=50, batch_ms=20, folder=str(tmp_path), metrics_s=5, host="", port=0
    )
    bridge = Edge(config, bench.custody)
    commit = bench.store.commit

    def noted():
        commit()
        events.append("commit")

    bench.store.commit = noted
    yield SimpleNamespace(bench=bench, bridge=bridge, events=events)
    bridge._wake_r.close()
    bridge._wake_w.close()
    bench.close()


def arrive(stage, device, *frames):
    for n, frame in enumerate(frames, 1):
        stage.bridge._arrived(device.topic().encode(), frame, n)


def test_commit_then_custody_then_puback(stage):
    device = stage.bench.device()
    stage.events.clear()
    arrive(stage, device, device.outcome(1), device.outcome(2))
    stage.bridge._flush()
    assert stage.events == ["commit", ("ack", device.agent.hex()), ("puback", 1), ("puback", 2)]


def test_a_judgement_is_on_disk_before_the_puback(stage, tmp_path):
    device = stage.bench.device()
    with contextlib.closing(Rounds(tmp_path / "mailbox.db", stage.bench.custody)) as rounds:
        stage.bridge.rounds = rounds
        waiting = []

        def puback(mid, qos):
            with contextlib.closing(Mailbox(tmp_path / "mailbox.db")) as other:
                waiting.append([one.result for one in other.judgements()])

        stage.bridge.client.ack = puback
        for n, result in enumerate(("confirmed", "corrected"), 1):
            said = json.dumps({"outcome": f"{n:032x}", "result": result, "label": 1}).encode()
            stage.bridge._arrived(device.topic("judge").encode(), said, n)
        stage.bridge._flush()
        assert waiting == [["confirmed", "corrected"]] * 2


def test_a_failed_commit_acknowledges_nothing(stage):
    device = stage.bench.device()
    stage.events.clear()

    def full():
        raise StoreError("disk full", code=28)

    stage.bench.store.commit = full
    arrive(stage, device, device.outcome(1))
    with pytest.raises(StoreError):
        stage.bridge._flush()
    assert stage.events == []


def test_a_message_that_breaks_the_code_does_not_come_round_for_ever(stage, monkeypatch):
    bench = stage.bench
    device = bench.device()
    good = [device.outcome(seq) for seq in (1, 2, 3)]
    poison = device.outcome(4)
    real = bench.custody._verdict

    def verdict(topic, payload):
        if payload == poison:
            raise ZeroDivisionError("a bug")
        return real(topic, payload)

    monkeypatch.setattr(bench.custody, "_verdict", verdict)
    stage.events.clear()
    arrive(stage, device, good[0], poison, good[1], good[2])
    stage.bridge._flush()
    # The others are in, and the broker is rid of all of them.
    assert [seq for (seq,) in bench.rows("seq")] == [1, 2, 3]
    assert [e for e in stage.events if e[0] == "puback"] == [("puback", n) for n in (1, 2, 3, 4)]
    assert bench.store.rejected_counts() == {"internal": 1}
    ((sample, detail),) = bench.store.run("SELECT frame, detail FROM samples").fetchall()
    assert sample == poison and "ZeroDivisionError" in detail
    # No custody acknowledgement named it: the device keeps the record.
    monkeypatch.undo()
    (ack,) = bench.send(device, poison)
    assert ack.ranges == ((4, 4),)


def test_what_is_pending_is_bounded_by_the_batch(stage):
    device = stage.bench.device()
    assert stage.bridge._wanted()
    arrive(stage, device, *(device.outcome(seq) for seq in range(1, 51)))
    assert not stage.bridge._wanted()
    stage.bridge._flush()
    assert stage.bridge._wanted()


def test_state_is_noted_and_topics_that_are_no_text_are_refused(stage):
    device = stage.bench.device()
    name = device.topic("state").encode()
    stage.bridge._arrived(name, b"online", 0)
    assert stage.bridge.online == {device.agent.hex(): True}
    stage.bridge._arrived(name, b"offline", 0)
    assert stage.bridge.online == {device.agent.hex(): False}
    stage.bridge._arrived(b"\xff\xfe/up", device.outcome(1), 9)
    stage.bridge._flush()
    assert ("puback", 9) in stage.events
    assert stage.bench.store.rejected_counts() == {"bad-topic": 1}
