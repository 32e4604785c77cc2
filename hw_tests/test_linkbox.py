"""The link box does what it says, judged at a real broker; and the MQTT link of boards
survives it over a serial line. MicroPython's unix port, a socket for the UART."""

import json
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from brokers import Mosquitto
from harness.linkbox import LinkBox, Packets
from paho.mqtt.enums import CallbackAPIVersion

pytestmark = pytest.mark.fast
JOB = Path(__file__).with_name("line_job.py")
MICROPYTHON = Path(sys.executable).with_name("micropython")


class Listener:
    """Numbers of the messages that a subscriber of the broker received."""

    def __init__(self, port):
        self.got = []
        self.client = paho.Client(CallbackAPIVersion.VERSION2, "listener", clean_session=False)
        self.client.on_connect = lambda c, *a: c.subscribe("t/up", 1)
        ready = threading.Event()
        self.client.on_subscribe = lambda *a: ready.set()
        self.client.on_message = lambda c, d, m: self.got.append(int(m.payload[:6]))
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert ready.wait(10)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def broker(tmp_path):
    made = Mosquitto(
        tmp_path, "allow_anonymous true", "max_queued_messages 0", "set_tcp_nodelay true"
    )
    made.start()
    listener = Listener(made.port)
    try:
        yield made, listener
    finally:
        listener.close()
        made.kill()


class Job:
    def __init__(self, box, count, **fields):
        fields.update(port=box.port, count=count)
        self.process = subprocess.Popen(
            [MICROPYTHON, JOB, json.dumps(fields)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def result(self, seconds=30):
        said, end = [], time.monotonic() + seconds
        while True:
            try:
                line = self.lines.get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError("hangs:\n" + "".join(said)) from None
            assert line is not None, "".join(said)
            said.append(line)
            if line.startswith("{"):
                return json.loads(line)

    def end(self):
        self.process.kill()
        self.process.wait()


def flood(broker, mode, fault, count=300, **fields):
    """All numbers arrive, whatever `fault(box)` does once a third has arrived."""
    made, listener = broker
    fields.setdefault("dial", "5551" if mode == "modem" else "")
    with LinkBox(made.port, mode, seed=7) as box:
        job = Job(box, count, tcp=mode == "tcp", **fields)
        try:
            end = time.monotonic() + 15
            while len(listener.got) < count // 3:
                assert time.monotonic() < end, box.story()
                time.sleep(0.005)
            fault(box)
            try:
                result = job.result()
            except AssertionError as error:
                raise AssertionError(f"{error}\n{box.story()}") from None
        finally:
            job.end()
        assert set(listener.got) == set(range(count)), box.story()
        return result, box, len(listener.got) - count


def held(seconds, start):
    def fault(box):
        start(box)
        time.sleep(seconds)
        box.mend()

    return fault


MODES = ["tcp", "serial", "modem"]


@pytest.mark.parametrize("mode", MODES)
def test_a_cut_line(broker, mode):
    result, box, _ = flood(broker, mode, held(0.6, LinkBox.cut))
    assert box.counts["connected"] >= 2
    assert result["losses"]
    if mode == "modem":
        assert box.counts["NO CARRIER"] >= 1
        assert any("NO CARRIER" in loss for loss in result["losses"])
    if mode == "serial":
        # Nobody told the machine: its own deadlines found out.
        assert all(loss.startswith("timeout") for loss in result["losses"])
        assert box.counts["line up"] == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_cut_inside_a_packet(broker, mode):
    _, box, _ = flood(broker, mode, lambda box: box.cut_after(1000))
    assert box.counts["cut inside a packet"] == 1
    assert box.counts["connected"] >= 2


@pytest.mark.parametrize("mode", ["tcp", "serial"])
def test_half_open(broker, mode):
    result, box, _ = flood(broker, mode, held(1.5, LinkBox.hole))
    assert box.counts["bytes into the hole"] > 0
    assert any(loss.startswith("timeout") for loss in result["losses"])


def test_lost_pubacks_are_sent_again(broker):
    result, box, more = flood(broker, "serial", held(1.3, LinkBox.lose_pubacks))
    assert box.counts["PUBACKs lost"] >= 8
    assert any("PUBACK" in loss for loss in result["losses"])
    assert more >= 8  # the broker had them already, and got them twice


def test_duplicates_do_not_disturb(broker):
    result, box, more = flood(broker, "serial", lambda box: box.duplicate(0.5))
    assert box.counts["PUBLISHes doubled"] >= 50
    assert more >= 50
    assert result["losses"] == []


def test_bytes_lost_on_the_uart(broker):
    _, box, _ = flood(broker, "serial", held(2.0, lambda box: box.lose(0.02)), count=600)
    assert box.counts["bytes lost"] > 0


def test_slow_and_late(broker):
    def fault(box):
        box.delay(0.05, 0.02)
        time.sleep(1)
        box.drip(20000)
        time.sleep(1)
        box.mend()

    result, _, more = flood(broker, "serial", fault, puback_ms=5000)
    assert result["losses"] == []
    assert more == 0


def test_a_modem_that_finds_nobody(broker):
    """NO CARRIER as the answer to dialling is the network's trouble, and comes at once."""
    made, _ = broker
    with LinkBox(made.port, "modem") as box:
        box.cut()
        job = Job(box, 1, dial="5551")
        try:
            time.sleep(2.5)
            assert box.counts["NO CARRIER"] >= 1
            box.mend()
            losses = job.result()["losses"]
        finally:
            job.end()
        assert losses
        assert all(loss == "network modem 5551: NO CARRIER" for loss in losses)


def test_packets_are_cut_at_their_ends():
    packets = [b"\x30\x03abc", b"\xc0\x00", b"\x32\x80\x01" + bytes(128)]
    stream = b"".join(packets)
    for size in (1, 2, 7, len(stream)):
        cutter, found = Packets(), []
        for at in range(0, len(stream), size):
            found += cutter.feed(stream[at : at + size])
        assert found == packets
        assert not cutter.rest
    garbage = Packets()
    assert garbage.feed(b"\x30\xff\xff\xff\xff\xff") == [b"\x30\xff\xff\xff\xff\xff"]
    assert garbage.feed(b"\xc0\x00") == [b"\xc0\x00"]
