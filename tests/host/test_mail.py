"""Mail end to end: a real broker, a real gateway process, a real agent process on either
interpreter; a head and outcomes of others arrive, are used and reported, through kills."""

import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gateway_kit import (
    broker_running,
    enrol_device,
    free_port,
    gateway,
    gateway_running,
    running,
    wait_until,
)

from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain
from edge_agent.head import Row, encode_row
from edge_agent.synthesis import Neighbour, encode_neighbour
from gateway.mailbox import NEIGHBOUR, Mailbox
from gateway.opening import opened
from gateway.records import read_stored

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
MICROPYTHON = Path(sys.executable).with_name("micropython")
JOB = Path(__file__).with_name("agent_job.py")
DOMAIN = Domain.load((MODELS / "watch.domain").read_bytes(), HostCrypto())
LABELS = len(DOMAIN.labels)


def head(version, label):
    """A head that finds this label in everything."""
    rows = []
    for i in range(LABELS):
        bias = 900 if i == label else 0
        rows.append(encode_row(Row(version, b"", i, LABELS, bytes(64), bias, 1, 0)))
    return rows


def neighbour(seed):
    rng = np.random.default_rng(seed)
    vector = rng.integers(-100, 100, 64, np.int8).tobytes()
    return encode_neighbour(Neighbour(rng.bytes(16), vector, seed % LABELS, 100, 0, 0))


class Place:
    """A gateway's folder, a broker, and one device that takes mail."""

    def __init__(self, tmp_path, interpreter):
        self.tmp, self.folder, self.port = tmp_path, tmp_path / "gw", free_port()
        gateway("init", self.folder, "--domain", MODELS / "watch.domain", "--port", self.port)
        settings = json.loads((self.folder / "gateway.json").read_text())
        (self.folder / "gateway.json").write_text(json.dumps(settings | {"metrics_s": 1}))
        self.device = enrol_device(self.folder, "watch")
        fields = json.loads(self.device.read_text())
        self.agent = bytes.fromhex(fields["agent"])
        fields.update(
            model=str(MODELS / "watch_mlp_int8.tflite"),
            domain=str(MODELS / "watch.domain"),
            journal={"path": str(tmp_path / "flash"), "batch": 4, "batch_ms": 50},
            delivery={"pace_per_s": 1000},
            peers={},
        )
        self.command = [MICROPYTHON, JOB, self.device, "100000", "100", "0"]
        if interpreter == "cpython":
            fields["sensor"] = {
                "kind": "replay",
                "path": str(MODELS / "data" / "watch_replay.bin"),
                "speed": 12,
                "loop": True,
            }
            self.command = [sys.executable, "-m", "edge_agent.cli", "run", "--config", self.device]
        self.device.write_text(json.dumps(fields))
        self.device.chmod(0o600)
        self.log = tmp_path / "gateway.log"
        self.mailbox = Mailbox(self.folder / "mailbox.db", 10_000)

    def agent_running(self):
        return running(*self.command, log=self.tmp / "agent.log")

    def gateway_running(self):
        return gateway_running(self.folder, self.log)

    def until(self, condition, seconds=40):
        def story():
            rows = self.mailbox.rows("SELECT number, taken_ms, length(body) FROM items")
            said = [(self.mailbox.waiting(self.agent), self.mailbox.boxes(), rows[:20])]
            tails = [p.read_text()[-1500:] for p in self.tmp.glob("*.log")]
            return "\n".join([str(said), *tails])

        wait_until(condition, seconds, story)

    def done(self):
        return self.mailbox.waiting(self.agent).items == 0

    def in_force(self):
        return self.mailbox.head(self.agent).in_force

    def outcomes(self):
        """The records held, oldest first."""
        with opened(self.folder) as (_, store, registry):
            found = []
            for row in store.arrivals(0, 100_000):
                found.append(read_stored(store.frame(row), registry.secret).record.outcome)
            return found


@pytest.fixture(params=["cpython", "micropython"])
def place(request, tmp_path):
    made = Place(tmp_path, request.param)
    yield made
    made.mailbox.close()


@pytest.fixture
def plain(tmp_path):
    """For what does not depend on the interpreter."""
    made = Place(tmp_path, "cpython")
    yield made
    made.mailbox.close()


def test_a_head_arrives_decides_and_is_reported(place):
    with broker_running("mosquitto", place.folder, place.port), place.gateway_running():
        # Queued before the device was ever seen: nothing is sent into the void.
        place.mailbox.put_head(place.agent, 7, head(7, 2), 0)
        assert place.mailbox.standing(place.agent) == (None, 0, 0)
        with place.agent_running():
            place.until(lambda: place.in_force() == 7)
            place.until(place.done)
            assert place.mailbox.head(place.agent)[:3] == (None, 7, 7)
            assert place.mailbox.standing(place.agent)[:2] == (LABELS, LABELS)
            # Another one while it is there, and outcomes of others.
            place.mailbox.put_head(place.agent, 8, head(8, 3), 0)
            for seed in range(10):
                place.mailbox.put(place.agent, NEIGHBOUR, neighbour(seed), 2, 0)
            place.until(lambda: place.in_force() == 8)
            place.until(place.done)
            before = len(place.outcomes())
            place.until(lambda: len(place.outcomes()) > before + 5)
        found = json.loads(gateway("-C", place.folder, "mailbox", "watch", "--json").stdout)
    outcomes = place.outcomes()
    heads = [one.head for one in outcomes]
    assert set(heads) <= {None, 7, 8} and heads == sorted(heads, key=lambda h: h or 0)
    assert heads.count(7) > 0 and heads.count(8) > 5
    for one in outcomes:
        if not one.parents:
            assert one.head is None or one.label == {7: 2, 8: 3}[one.head]
        # What its own model said travels along exactly when something else decided.
        assert (one.alone is None) == (one.head is None and not one.parents)
    (box,) = found
    assert box["head_in_force"] == 8 and box["taken"] == 2 * LABELS + 10 and box["waiting"] == 0
    assert box["counts"]["taken"] == box["counts"]["put"] == 2 * LABELS + 10
    assert [item["number"] for item in box["latest"]] == list(
        range(2 * LABELS + 10, 2 * LABELS - 10, -1)
    )
    text = gateway("-C", place.folder, "mailbox").stdout
    assert "watch" in text and "8, 8, -" in text


def test_each_item_once_through_kills_of_both_ends(place):
    rng = random.Random(5)
    put = 0
    with broker_running("mosquitto", place.folder, place.port):
        for life in range(3):
            with contextlib.ExitStack() as stack:
                server = stack.enter_context(place.gateway_running())
                device = stack.enter_context(place.agent_running())
                for _ in range(24):
                    put += 1
                    assert place.mailbox.put(place.agent, NEIGHBOUR, neighbour(put), 1, 0).id
                before = place.mailbox.waiting(place.agent).items
                share = rng.randrange(2, 20)
                place.until(lambda n=before - share: place.mailbox.waiting(place.agent).items <= n)
                for process in rng.sample([server, device], rng.choice([1, 2])):
                    process.kill()
                    process.wait(10)
            assert place.mailbox.waiting(place.agent).items > 0 or life == 2
        with place.gateway_running(), place.agent_running():
            place.until(place.done)
    # Numbers follow each other, and there are as many as items: nothing twice, nothing lost.
    box = place.mailbox
    assert box.standing(place.agent)[:2] == (put, put)
    assert box.counts(place.agent) == {"put": put, "taken": put}
    numbers = [one.number for one in box.taken(place.agent, 1000)]
    assert numbers == list(range(put, 0, -1))
    assert "Traceback" not in place.log.read_text()


def test_the_embedded_broker_carries_mail(plain):
    with (
        broker_running("iotcore", plain.folder, plain.port),
        plain.gateway_running(),
        plain.agent_running(),
    ):
        plain.mailbox.put_head(plain.agent, 7, head(7, 2), 0)
        plain.until(lambda: plain.in_force() == 7)


def test_a_device_that_sleeps_gets_its_mail_when_it_is_there(plain):
    """It connects for a moment every few seconds. Nothing is sent into its absence."""
    fields = json.loads(plain.device.read_text())
    fields["delivery"].update(duty_s=3, duty_cap_s=3)
    fields["sensor"]["speed"] = 0.5
    plain.device.write_text(json.dumps(fields))
    with (
        broker_running("mosquitto", plain.folder, plain.port),
        plain.gateway_running(),
        plain.agent_running(),
    ):

        def status():
            return json.loads((plain.folder / "status.json").read_text())

        def away():
            found = json.loads(gateway("-C", plain.folder, "devices", "--json").stdout)
            return found[0]["online"] is False

        plain.until(lambda: len(plain.outcomes()) > 0)
        plain.until(away)
        for i in range(20):
            plain.mailbox.put(plain.agent, NEIGHBOUR, neighbour(i), 1, 0)
        plain.until(plain.done)
        plain.until(lambda: status()["counts"]["mail_taken"] == 20)
        sent = status()["counts"]["mail_sent"]
    # Each box once; a visit that ended too soon may have cost a few more.
    assert 20 <= sent <= 20 + 8, sent
    assert plain.mailbox.standing(plain.agent)[:2] == (20, 20)


def test_a_wiped_device_gets_its_mail_again(place):
    with broker_running("mosquitto", place.folder, place.port), place.gateway_running():
        place.mailbox.put_head(place.agent, 7, head(7, 2), 0)
        with place.agent_running():
            place.until(lambda: place.in_force() == 7)
            place.until(place.done)
        subprocess.run(["rm", "-r", place.tmp / "flash"], check=True)
        with place.agent_running():
            place.until(lambda: place.in_force() is None)
            place.until(lambda: place.in_force() == 7)
            place.until(place.done)
    assert place.mailbox.counts(place.agent)["again"] == LABELS


def test_custody_goes_on_while_the_mailbox_is_locked_and_damaged(place):
    with (
        broker_running("mosquitto", place.folder, place.port),
        place.gateway_running(),
        place.agent_running(),
    ):
        place.until(lambda: len(place.outcomes()) > 3)
        place.mailbox.put_head(place.agent, 7, head(7, 2), 0)
        locker = sqlite3.connect(place.folder / "mailbox.db", isolation_level=None)
        locker.execute("BEGIN IMMEDIATE")
        before = len(place.outcomes())
        place.until(lambda: len(place.outcomes()) > before + 10)
        locker.execute("ROLLBACK")
        locker.close()
        place.until(lambda: place.in_force() == 7)
        place.until(place.done)
        # Now it is destroyed under both of us.
        place.mailbox.run("PRAGMA wal_checkpoint(TRUNCATE)")
        with (place.folder / "mailbox.db").open("r+b") as file:
            file.write(os.urandom(30_000))
        before = len(place.outcomes())
        place.until(lambda: len(place.outcomes()) > before + 10)

        def put():
            with contextlib.suppress(Exception):
                return place.mailbox.put_head(place.agent, 9, head(9, 4), 0).id

        place.until(put)
        place.until(lambda: place.in_force() == 9)
    assert (place.folder / "mailbox.db.bad").exists()
    assert "Traceback" not in place.log.read_text()
