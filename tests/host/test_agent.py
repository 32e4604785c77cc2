"""The whole agent on Linux: real files, a real broker, a real gateway process."""

import asyncio
import json
import os
import time
from array import array
from pathlib import Path

import pytest
from gateway_kit import (
    CRYPTO,
    broker_running,
    enrol_device,
    free_port,
    gateway,
    gateway_running,
)

from edge_agent.agent import Agent
from edge_agent.config import Config
from edge_agent.cpython.board import linux_board
from edge_agent.domain import Domain, Features, VectorSpace, make_domain
from edge_agent.errors import StoreError
from edge_agent.interfaces import Model, ModelOutput, Sensor, Window
from gateway.cli import opened

SEED = bytes(range(32))
SPACE = VectorSpace(64, "profile/raw4", 1, 1, Features("raw", 1, 4, 4, (0,), (1,), 1))
DOMAIN_FILE = make_domain(
    CRYPTO, SEED, CRYPTO.public_key(SEED), "test", 1, SPACE, ["rest", "walk"], ["unsure"], [],
    ["confirmed", "corrected"],
)  # fmt: skip
DOMAIN = Domain.load(DOMAIN_FILE, CRYPTO)


class Counting(Model):
    """Labels in turn, and an embedding that no two windows share."""

    model_id = b"modelid1"
    input_length = 4
    labels = 2

    def run(self, features):
        n = features[0]
        return ModelOutput(bytes([255 - n, n]), bytes((n * i) & 127 for i in range(64)), 0)


class Windows(Sensor):
    def __init__(self, count, gap_s=0.0, first=0):
        self.next, self.end, self.gap_s = first, first + count, gap_s

    async def read(self):
        if self.next >= self.end:
            return None
        self.next += 1
        if self.gap_s:
            await asyncio.sleep(self.gap_s)
        return Window(array("h", [self.next % 250] * 4), (), f"w{self.next}")


class Site:
    """One agent of an enrolled device."""

    def __init__(self, path, journal, sensor, **fields):
        content = json.loads(Path(path).read_text())
        content["journal"] = {"path": str(journal), "batch": 4, "batch_ms": 50}
        content["delivery"] = {"pace_per_s": 2000}
        for name, value in fields.items():
            content[name] = value
        self.config = Config.from_json(content)
        self.ledger, self.events, self.left = [], [], []
        board = linux_board(self.config, Counting(), sensor)
        publish = board.link.publish

        async def watched(topic, payload, qos=1, retain=False):
            def taken():
                data = payload() if callable(payload) else payload
                self.left.append(data)
                return data

            await publish(topic, taken, qos, retain)

        board.link.publish = watched
        self.agent = Agent(
            board,
            self.config,
            DOMAIN,
            on_committed=lambda key, seq, frame: self.ledger.append(frame),
            on_event=self.events.append,
        )

    def names(self):
        return [e.name for e in self.events]


@pytest.fixture
def place(tmp_path):
    """A gateway's folder with an enrolled device; nothing runs yet."""
    domain = tmp_path / "test.domain"
    domain.write_bytes(DOMAIN_FILE)
    port = free_port()
    folder = tmp_path / "gateway"
    gateway("init", folder, "--domain", domain, "--port", port)
    return folder, port, enrol_device(folder, "site")


@pytest.fixture
def alone(tmp_path):
    """The file of a device whose gateway does not exist."""
    path = tmp_path / "alone.json"
    path.write_text(json.dumps({"agent": "0102030405060708", "key": SEED.hex()}))
    return path


def frames(folder):
    with opened(folder) as (_, store, _):
        return sorted(bytes(f) for (f,) in store.run("SELECT frame FROM frames"))


def run(work, seconds=25):
    async def limited():
        return await asyncio.wait_for(work, seconds)

    return asyncio.run(limited())


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_exactly_once_though_the_broker_is_killed(place, tmp_path, kind):
    folder, port, path = place
    log = tmp_path / "gateway.log"

    async def work(site):
        running = asyncio.create_task(site.agent.run(drain=True))
        while len(site.ledger) < 60:
            await asyncio.sleep(0.01)
        first.process.kill()
        first.process.wait()
        await asyncio.sleep(0.3)
        with broker_running(kind, folder, port):
            await running

    first = _Entered(broker_running(kind, folder, port))
    with first, gateway_running(folder, log):
        site = Site(path, tmp_path / "journal", Windows(200, 0.005))
        run(work(site))
    assert len(site.ledger) == 200
    assert sorted(site.ledger) == frames(folder)
    assert "link-down" in site.names()
    status = site.agent.status()
    assert status["journal_stats"]["pending"] == [0, 0, 0]
    # Every byte that left is in the account, and it is on disk.
    account = status["egress"]
    assert sum(n for n, _ in account.values()) == len(site.left)
    assert sum(b for _, b in account.values()) == sum(map(len, site.left))
    assert (tmp_path / "journal" / "egress0").exists() or (
        tmp_path / "journal" / "egress1"
    ).exists()


class _Entered:
    """A context whose process may be killed by the test."""

    def __init__(self, context):
        self.context = context

    def __enter__(self):
        self.process = self.context.__enter__()
        return self

    def __exit__(self, *exc):
        return self.context.__exit__(None, None, None)


def test_work_done_offline_is_delivered_by_the_next_boot(place, tmp_path):
    folder, port, path = place
    site = Site(path, tmp_path / "journal", Windows(40))

    async def offline():
        running = asyncio.create_task(site.agent.run())
        while len(site.ledger) < 40:
            await asyncio.sleep(0.01)
        site.agent.stop()
        await running

    run(offline())
    assert "link-down" in site.names()
    with (
        broker_running("mosquitto", folder, port),
        gateway_running(folder, tmp_path / "gateway.log"),
    ):
        again = Site(path, tmp_path / "journal", Windows(5, first=40))
        run(again.agent.run(drain=True))
    assert frames(folder) == sorted(site.ledger + again.ledger)
    assert again.agent.journal.boot == 2


def test_wrong_key(place, tmp_path):
    folder, port, path = place
    content = json.loads(Path(path).read_text())
    wrong = bytes(32).hex()
    with broker_running("mosquitto", folder, port):
        site = Site(path, tmp_path / "journal", Windows(3), key=wrong)

        async def work():
            running = asyncio.create_task(site.agent.run(drain=True))
            while "link-down" not in site.names():
                await asyncio.sleep(0.01)
            start = time.monotonic()
            site.agent.stop()
            await running
            return time.monotonic() - start

        assert run(work()) < 5
    down = next(e for e in site.events if e.name == "link-down")
    assert down.fields["reason"] == "refused"
    assert down.fields["retry_ms"] >= 7500, "a wrong password is not tried every second"
    assert len(site.ledger) == 3
    assert site.agent.status()["journal_stats"]["pending"] == [0, 3, 0]
    assert content["key"] not in repr(site.config)


def test_two_devices_with_one_identity(place, tmp_path):
    """They push each other off the broker, and still lose nothing."""
    folder, port, path = place
    with (
        broker_running("mosquitto", folder, port),
        gateway_running(folder, tmp_path / "gateway.log"),
    ):
        sites = [Site(path, tmp_path / f"journal{i}", Windows(25, 0.02, 100 * i)) for i in range(2)]

        async def work():
            await asyncio.gather(*[site.agent.run(drain=True) for site in sites])

        run(work())
    assert frames(folder) == sorted(sites[0].ledger + sites[1].ledger)
    assert sum(len(site.ledger) for site in sites) == 50


def test_one_journal_has_one_owner(alone, tmp_path):
    Site(alone, tmp_path / "journal", Windows(0))
    with pytest.raises(StoreError) as caught:
        Site(alone, tmp_path / "journal", Windows(0))
    assert str(tmp_path / "journal") in str(caught.value)
    assert caught.value.fix


def test_a_directory_that_cannot_be_used(alone, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as caught:
        Site(alone, tmp_path / "file" / "journal", Windows(0))
    assert "journal.path" in caught.value.fix


def test_a_disk_that_is_full_for_a_while(place, tmp_path, monkeypatch):
    folder, port, path = place
    full = [True]
    real = os.fsync

    def fsync(descriptor):
        if full[0]:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with (
        broker_running("mosquitto", folder, port),
        gateway_running(folder, tmp_path / "gateway.log"),
    ):
        site = Site(path, tmp_path / "journal", Windows(30, 0.01))
        monkeypatch.setattr(os, "fsync", fsync)

        async def work():
            running = asyncio.create_task(site.agent.run(drain=True))
            await asyncio.sleep(0.6)
            assert not site.ledger
            assert "sync-failed" in site.names()
            assert site.agent.core.delivery.counters.get("sent", 0) == 0
            full[0] = False
            await running

        run(work())
    assert len(site.ledger) == 30
    assert frames(folder) == sorted(site.ledger)
