"""Mail from mailbox.db to sealed boxes, beside a real custody; what must not stop it."""

import sqlite3
import time

import pytest
from gateway_kit import NOW, Bench

from edge_agent import frame as wire
from edge_agent.errors import StoreError
from gateway.mailbox import NEIGHBOUR, Mailbox
from gateway.postman import AGAIN_MS, PROBE_NUMBER
from gateway.rounds import RETRY_MS, Rounds


class Office:
    """A bench with rounds. Devices hear acks first, as on a broker."""

    def __init__(self, folder):
        self.bench = Bench(folder)
        self.path = folder / "mailbox.db"
        self.at_ms = 0
        self.rounds = Rounds(self.path, self.bench.custody)
        self.sender = Mailbox(self.path, now_ms=lambda: self.bench.now)

    def close(self):
        self.sender.close()
        self.rounds.close()
        self.bench.close()

    def hello(self, device, **fields):
        """One hello through custody; boxes that follow it, opened."""
        self.bench.now += 1000
        self.at_ms += 1000
        fields = {"counter": getattr(device, "counter", 0), "taken": 0, "head": None, **fields}
        frame = device.hello(1, **fields)
        plan = self.bench.custody.judge([(device.topic(), frame)], self.bench.now)
        self.bench.custody.commit(plan)
        for _, payload in self.bench.custody.answers(plan):
            device.counter = device.read(payload).counter
        self.rounds.heard(plan)
        return self.turn(device)

    def turn(self, device, wait_ms=1000):
        self.at_ms += wait_ms
        self.bench.now += wait_ms
        out = []
        for topic, payload in self.rounds.turn(self.bench.now, self.at_ms):
            assert topic == device.topic("box") and len(payload) <= 512
            box = device.read(payload)
            assert box.counter > getattr(device, "counter", 0)
            device.counter = box.counter
            out.append(box)
        return out

    def met(self, device, taken=0):
        """The question has been asked and answered."""
        self.sender.put(device.agent, NEIGHBOUR, b"first", 0, 0)
        (asked,) = self.hello(device, taken=taken)
        assert (asked.number, asked.type, asked.body) == (PROBE_NUMBER, 0, b"")
        (box,) = self.hello(device, taken=taken)
        assert (box.number, box.body) == (taken + 1, b"first")
        return self


@pytest.fixture
def office(tmp_path):
    made = Office(tmp_path)
    yield made
    made.close()


def numbers(boxes):
    return [box.number for box in boxes]


def test_the_whole_way(office):
    device = office.bench.device()
    office.met(device, taken=6)
    # It says what it took; the next ones follow at once, eight at most under way.
    for i in range(20):
        office.sender.put(device.agent, NEIGHBOUR, b"%d" % i, 1, 0)
    assert numbers(office.hello(device, taken=7)) == list(range(8, 16))
    assert office.turn(device) == [] and office.sender.waiting(device.agent) == (20, 30, 8)
    assert numbers(office.hello(device, taken=15)) == list(range(16, 24))
    # Half of them were lost on the way: the device has seen later counters.
    assert numbers(office.hello(device, taken=19)) == [20, 21, 22, 23, 24, 25, 26, 27]
    assert office.hello(device, taken=27) == []
    assert office.sender.waiting(device.agent).items == 0
    assert len(office.sender.taken(device.agent)) == 21
    counts = office.rounds.counters.counts
    assert (counts["mail_taken"], counts["mail_questions"]) == (21, 1)
    assert counts["mail_sent"] == 21 + 4


def test_new_mail_goes_out_while_the_device_is_there(office):
    device = office.bench.device()
    office.met(device)
    office.hello(device, taken=1)
    office.sender.put(device.agent, NEIGHBOUR, b"later", 1, 0)
    assert numbers(office.turn(device)) == [2]
    # No answer: again, the same under the same number.
    assert office.turn(device, AGAIN_MS - 1001) == []
    (again,) = office.turn(device, 1001)
    assert (again.number, again.body) == (2, b"later")
    # The broker says that it has gone: nothing until it says hello.
    office.rounds.gone(device.agent.hex())
    assert office.turn(device, 10 * AGAIN_MS) == []
    assert numbers(office.hello(device, taken=1)) == [2]


def test_a_device_that_takes_no_mail_gets_none(office):
    device = office.bench.device()
    office.sender.put(device.agent, NEIGHBOUR, b"a", 1, 0)
    assert office.hello(device, taken=None) == []
    assert office.turn(device, AGAIN_MS) == []


def test_a_gateway_that_starts_again_repeats_what_was_under_way(office):
    device = office.bench.device()
    office.met(device)
    office.rounds.close()
    office.bench.crash()
    office.rounds = Rounds(office.path, office.bench.custody)
    assert office.turn(device) == []  # it has not said hello to this process
    (box,) = office.hello(device, taken=0)
    assert (box.number, box.body) == (1, b"first")
    # Had it been taken meanwhile, that would be known now.
    assert office.hello(device, taken=1) == []
    assert office.sender.waiting(device.agent).items == 0


def test_a_device_that_encrypts_gets_encrypted_boxes(office, monkeypatch):
    device = office.bench.device()
    kinds = []
    opened = wire.open_frame
    monkeypatch.setattr(
        wire, "open_frame", lambda *a: kinds.append(opened(*a).encrypted) or opened(*a)
    )
    office.met(device)
    assert kinds[-1] is False
    office.bench.now += 1
    plan = office.bench.custody.judge(
        [(device.topic(), device.outcome(1, encrypt=True))], office.bench.now
    )
    office.bench.custody.commit(plan)
    office.rounds.heard(plan)
    office.sender.put(device.agent, NEIGHBOUR, b"secret", 1, 0)
    office.hello(device, taken=1)
    assert kinds[-1] is True
    # Known to the next process, too.
    office.rounds.close()
    office.rounds = Rounds(office.path, office.bench.custody)
    office.hello(device, taken=1)
    assert kinds[-1] is True


def test_counters_are_reserved_before_they_are_used(office):
    """A day without commits: boxes still get counters that no later process repeats."""
    device = office.bench.device()
    office.met(device)
    office.hello(device, taken=1)
    office.sender.put(device.agent, NEIGHBOUR, b"a", 1, 0)
    (box,) = office.turn(device, 86_400_000) or office.hello(device, taken=1)
    assert office.bench.store.meta("counter") >= box.counter


def test_a_locked_mailbox_stops_nothing(office):
    device = office.bench.device()
    office.met(device)
    other = sqlite3.connect(office.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    assert office.hello(device, taken=1) == []
    assert time.monotonic() - started < 0.5
    assert office.bench.send(device, device.outcome(1))[0].ranges == ((1, 1),)
    assert office.rounds.counters.counts["mail_failures"] >= 1
    # Not tried again at once: a thread that waits 50 ms for each batch takes in little.
    started = time.monotonic()
    office.at_ms -= 1000
    assert office.turn(device, 0) == []
    assert time.monotonic() - started < 0.04
    other.execute("ROLLBACK")
    other.close()
    # The hello was not forgotten.
    office.turn(device, 2 * RETRY_MS + 1)
    assert office.sender.waiting(device.agent).items == 0


def test_a_damaged_mailbox_is_set_aside_and_filled_again(office):
    device = office.bench.device()
    office.met(device, taken=3)
    office.hello(device, taken=4)
    office.sender.close()
    office.rounds.mailbox().run("PRAGMA wal_checkpoint(TRUNCATE)")
    office.rounds.close()
    with office.path.open("r+b") as file:
        file.write(b"not a database" * 1000)
    office.rounds.turn(office.bench.now, office.at_ms)
    assert office.rounds.counters.counts["mailboxes_set_aside"] == 1
    assert (office.path.parent / "mailbox.db.bad").exists()
    assert office.bench.send(device, device.outcome(1))[0].ranges == ((1, 1),)
    office.sender = Mailbox(office.path, now_ms=lambda: office.bench.now)
    office.sender.put(device.agent, NEIGHBOUR, b"again", 1, 0)
    # Where the device is, it says itself; it is asked, because this hello may be old.
    (asked,) = office.hello(device, taken=4)
    assert asked.number == PROBE_NUMBER
    (box,) = office.hello(device, taken=4)
    assert (box.number, box.body) == (5, b"again")


@pytest.mark.parametrize("hello_first", [False, True])
def test_a_mailbox_that_is_another_file_is_asked_about_first(office, hello_first):
    """Set aside under a running gateway: numbers begin anew, and so would what is taken."""
    device = office.bench.device()
    office.bench.send(device, device.outcome(1, encrypt=True))
    plan = office.bench.custody.judge(
        [(device.topic(), device.outcome(2, encrypt=True))], office.bench.now
    )
    office.bench.custody.commit(plan)
    office.rounds.heard(plan)
    office.met(device, taken=2)
    assert office.hello(device, taken=3) == []
    for suffix in ("-wal", "-shm", ""):
        office.path.with_name("mailbox.db" + suffix).unlink(missing_ok=True)
    for i in range(3):
        office.sender.put(device.agent, NEIGHBOUR, b"%d" % i, 1, 0)
    # Numbers from 1 on would go by: the device takes 4 and those behind it.
    (asked,) = office.hello(device, taken=3) if hello_first else office.turn(device)
    assert asked.number == PROBE_NUMBER
    assert numbers(office.hello(device, taken=3)) == [4, 5, 6]
    assert office.rounds.mailbox().encrypts(device.agent)  # it said so before


def test_a_device_in_doubt_is_asked_whatever_else_happens(office):
    device, other = office.bench.device(), office.bench.device()
    office.met(device)
    assert office.hello(device, taken=1) == []
    office.sender.put(other.agent, NEIGHBOUR, b"x", 1, 0)  # the file changes meanwhile
    (asked,) = office.hello(device, taken=0)
    assert asked.number == PROBE_NUMBER
    office.sender.put(other.agent, NEIGHBOUR, b"y", 1, 0)
    (asked,) = office.turn(device, 2 * AGAIN_MS)
    assert asked.number == PROBE_NUMBER


def test_no_place_for_the_mailbox_is_counted_and_custody_goes_on(tmp_path):
    bench = Bench(tmp_path)
    rounds = Rounds(tmp_path / "nowhere" / "mailbox.db", bench.custody)
    assert rounds.turn(NOW, 0) == []
    rounds.turn_judges(NOW, RETRY_MS)
    assert rounds.counters.counts["mail_failures"] == 2
    with pytest.raises(StoreError):
        rounds.mailbox()
    bench.close()


def test_a_revoked_device_gets_nothing(office):
    device = office.bench.device()
    office.met(device)
    office.hello(device, taken=1)
    registry = office.bench.registry
    registry.revoke(registry.device(device.agent), NOW)
    office.sender.put(device.agent, NEIGHBOUR, b"a", 1, 0)
    assert office.turn(device) == [] and office.turn(device, AGAIN_MS) == []


def test_many_devices_take_turns(office):
    devices = [office.bench.device() for _ in range(70)]
    for device in devices:
        office.sender.put(device.agent, NEIGHBOUR, b"x", 1, 0)
    plans = [(d.topic(), d.hello(1, taken=0, head=None)) for d in devices]
    plan = office.bench.custody.judge(plans, office.bench.now)
    office.bench.custody.commit(plan)
    office.bench.custody.answers(plan)
    office.rounds.heard(plan)
    first = office.rounds.turn(office.bench.now, 1000)
    second = office.rounds.turn(office.bench.now, 2000)
    assert len(first) == 64 and len({topic for topic, _ in first + second}) == 70
