"""The whole agent on MicroPython: its own link, store, crypto and interpreter, the shipped
model, a real broker, a real gateway. Exactly once, whatever is killed."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from gateway_kit import broker_running, enrol_device, free_port, gateway, gateway_running

from gateway.cli import opened

ROOT = Path(__file__).resolve().parents[2]
JOB = Path(__file__).with_name("agent_job.py")
MICROPYTHON = Path(sys.executable).with_name("micropython")
DOMAIN = ROOT / "models" / "watch.domain"
MODEL = ROOT / "models" / "watch_mlp_int8.tflite"


@pytest.fixture
def place(tmp_path):
    port = free_port()
    folder = tmp_path / "gateway"
    gateway("init", folder, "--domain", DOMAIN, "--port", port)
    path = enrol_device(folder, "board")
    content = json.loads(path.read_text())
    content.update(
        model=str(MODEL),
        domain=str(DOMAIN),
        journal={"path": str(tmp_path / "flash"), "batch": 4, "batch_ms": 50},
        delivery={"pace_per_s": 2000},
    )
    path.write_text(json.dumps(content))
    path.chmod(0o600)
    return folder, port, path


class Board:
    """The MicroPython process; `ledger` are the frames it said were durable."""

    def __init__(self, path, windows, gap_ms=0, first=0):
        self.process = subprocess.Popen(
            [MICROPYTHON, JOB, path, str(windows), str(gap_ms), str(first)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.ledger, self.events, self.end, self.other = [], [], None, []
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        for line in self.process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                self.other.append(line)
                continue
            if "frame" in said:
                self.ledger.append(bytes.fromhex(said["frame"]))
            elif "event" in said:
                self.events.append(said["event"])
            elif "end" in said:
                self.end = said

    def until(self, condition, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None or self.process.returncode == 0, self.story()
            assert time.monotonic() < end, self.story()
            time.sleep(0.01)

    def wait(self, seconds=40):
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(self.story()) from None
        self.thread.join(5)
        assert self.process.returncode == 0, self.story()
        assert not self.other, self.story()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.thread.join(5)

    def story(self):
        return f"{len(self.ledger)} durable, {self.events[-20:]}, {self.end}\n" + "".join(
            self.other
        )


def frames(folder):
    with opened(folder) as (_, store, _):
        return sorted(bytes(f) for (f,) in store.run("SELECT frame FROM frames"))


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_exactly_once_though_the_broker_is_killed(place, tmp_path, kind):
    folder, port, path = place
    broker = broker_running(kind, folder, port)
    process = broker.__enter__()
    with gateway_running(folder, tmp_path / "gateway.log"):
        board = Board(path, 150, 5)
        try:
            board.until(lambda: len(board.ledger) >= 50)
            process.kill()
            process.wait()
            time.sleep(0.3)
            with broker_running(kind, folder, port):
                board.wait()
        finally:
            board.kill()
            broker.__exit__(None, None, None)
    assert len(board.ledger) == 150
    assert sorted(board.ledger) == frames(folder)
    assert "link-down" in board.events
    assert board.end == {"end": [0, 0, 0], "boot": 1}


def test_exactly_once_though_the_board_is_killed(place, tmp_path):
    """SIGKILL of the MicroPython process, three times: what it called durable arrives."""
    folder, port, path = place
    ledger = []
    with (
        broker_running("mosquitto", folder, port),
        gateway_running(folder, tmp_path / "gateway.log"),
    ):
        for boot in range(1, 4):
            board = Board(path, 1000, 4, 1000 * boot)
            enough = 10 + 17 * boot
            board.until(lambda board=board, enough=enough: len(board.ledger) >= enough)
            board.kill()
            ledger += board.ledger
        board = Board(path, 10, 0, 9000)
        board.wait()
        ledger += board.ledger
    arrived = frames(folder)
    assert len(set(ledger)) == len(ledger)
    # Nothing it called durable is missing; a record may be durable and not yet announced.
    assert set(ledger) <= set(arrived)
    assert len(set(arrived)) == len(arrived)
    assert len(ledger) <= len(arrived) <= len(ledger) + 3 * 8
    assert board.end == {"end": [0, 0, 0], "boot": 4}


def test_work_done_offline_is_delivered_by_the_next_boot(place, tmp_path):
    folder, port, path = place
    board = Board(path, 40)
    board.until(lambda: len(board.ledger) == 40)
    board.kill()
    assert "link-down" in board.events
    with (
        broker_running("mosquitto", folder, port),
        gateway_running(folder, tmp_path / "gateway.log"),
    ):
        again = Board(path, 5, 0, 40)
        again.wait()
    assert frames(folder) == sorted(board.ledger + again.ledger)
