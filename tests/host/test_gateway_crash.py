"""A real gateway, killed at random moments, behind real brokers.

After every kill and at the end: what a device was told is committed is in the database,
each frame once, byte for byte. The device side keeps a record until it is acknowledged
and sends it again, as an agent does.
"""

import contextlib
import random
import signal
import sqlite3
import sys
import time

import pytest
from gateway_kit import (
    Publisher,
    broker_running,
    enrol_device,
    free_port,
    gateway_running,
    make_gateway,
    running,
    wait_until,
)

from gateway.blocks import teach

KILLS = 5


def held(folder):
    """{(agent, seq): [frames]} in the database."""
    db = teach(sqlite3.connect(f"file:{folder / 'gateway.db'}?mode=ro", uri=True))
    found = {}
    with contextlib.closing(db):
        for agent, seq, frame in db.execute(
            "SELECT d.agent, o.seq, f.frame FROM outcomes o JOIN frames f ON f.id = o.id"
            " JOIN streams s ON s.id = o.stream JOIN devices d ON d.id = s.device"
        ):
            found.setdefault((agent, seq), []).append(frame)
    return found


def check_promises(folder, publishers):
    """What was freed is there; nothing is there twice."""
    freed = []
    for publisher in publishers:
        with publisher.lock:
            freed += [
                (publisher.device.agent, seq, frame)
                for seq, frame in publisher.made.items()
                if seq not in publisher.held
            ]
    rows = held(folder)
    assert all(len(frames) == 1 for frames in rows.values())
    for agent, seq, frame in freed:
        assert rows.get((agent, seq)) == [frame], f"{agent.hex()} {seq} was freed and is lost"
    return len(freed)


def wait_until_or_give_up(condition, seconds):
    with contextlib.suppress(AssertionError):
        wait_until(condition, seconds)


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_each_frame_once_through_kills_of_the_gateway(tmp_path, kind):
    rng = random.Random(kind)
    folder, port = tmp_path / "gw", free_port()
    make_gateway(folder, port)
    publishers = []
    for n in range(3):
        publishers.append(Publisher(enrol_device(folder, f"d{n}")))
    log = tmp_path / "gateway.log"
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(broker_running(kind, folder, port))
        assert broker.poll() is None
        for publisher in publishers:
            stack.callback(publisher.stop)
            publisher.start()
            assert publisher.ready.wait(10)
        in_the_middle = 0
        for kill in range(KILLS):
            with gateway_running(folder, log) as process:
                for publisher in publishers:
                    publisher.make(150)
                total = sum(len(p.held) for p in publishers)
                if kill % 2:
                    process.send_signal(signal.SIGSTOP)  # so that a quick machine falls behind
                for publisher in publishers:
                    publisher.send()
                if kill % 2:
                    time.sleep(0.2)
                    process.send_signal(signal.SIGCONT)
                    # The first acknowledgements are here: most of the rest is under way.
                    end = time.monotonic() + 5
                    while sum(len(p.held) for p in publishers) == total and time.monotonic() < end:
                        time.sleep(0.0005)
                else:
                    time.sleep(rng.uniform(0.0, 0.15))
                process.kill()
                process.wait(10)
            check_promises(folder, publishers)
            in_the_middle += any(p.held for p in publishers)
        # Now it may live, and brings everything home.
        with gateway_running(folder, log):
            end = time.monotonic() + 20
            while any(p.held for p in publishers) and time.monotonic() < end:
                for publisher in publishers:
                    publisher.send()
                wait_until_or_give_up(lambda: not any(p.held for p in publishers), 1.5)
            assert [len(p.held) for p in publishers] == [0, 0, 0], log.read_text()[-3000:]
        assert check_promises(folder, publishers) == 3 * 150 * KILLS
    assert in_the_middle > 0, "no kill came while anything was under way"
    rows = held(folder)
    assert len(rows) == 3 * 150 * KILLS
    for publisher in publishers:
        assert not publisher.refused
        counters = [ack.counter for ack in publisher.acks]
        # MQTT may repeat an ack; numbers themselves are never given out twice.
        assert len(set(counters)) == len(set(publisher.acks))
    assert "Traceback" not in log.read_text()


def test_term_finishes_the_batch_and_leaves_reports_complete(tmp_path):
    folder, port = tmp_path / "gw", free_port()
    make_gateway(folder, port)
    publisher = Publisher(enrol_device(folder, "d"))
    log = tmp_path / "gateway.log"
    with broker_running("iotcore", folder, port):
        with gateway_running(folder, log) as process:
            publisher.start()
            assert publisher.ready.wait(10)
            publisher.make(120)
            publisher.send()
            wait_until(lambda: not publisher.held, 10)
            process.terminate()
            assert process.wait(10) == 0
        publisher.stop()
    db = sqlite3.connect(folder / "gateway.db")
    assert db.execute("SELECT held FROM streams").fetchall() == [("1-120",)]
    assert db.execute("SELECT sum(count) FROM runs").fetchall() == [(120,)]
    db.close()


def test_a_broker_that_loses_everything_loses_nothing(tmp_path):
    """SIGKILL with all it holds; the gateway comes back by itself, devices send again."""
    folder, port = tmp_path / "gw", free_port()
    make_gateway(folder, port)
    publisher = Publisher(enrol_device(folder, "d"))
    log = tmp_path / "gateway.log"
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(broker_running("iotcore", folder, port))
        publisher.start()
        stack.callback(publisher.stop)
        assert publisher.ready.wait(10)
        # Without a gateway the broker takes everything, and acknowledges it, in vain.
        publisher.make(200)
        publisher.send()
        time.sleep(0.5)
        publisher.ready.clear()
        broker.kill()
        broker.wait(10)
        stack.enter_context(broker_running("iotcore", folder, port))
        stack.enter_context(gateway_running(folder, log))
        assert publisher.ready.wait(10)
        end = time.monotonic() + 15
        while publisher.held and time.monotonic() < end:
            publisher.send()
            wait_until_or_give_up(lambda: not publisher.held, 2)
        assert not publisher.held, log.read_text()[-3000:]
    assert check_promises(folder, [publisher]) == 200


def test_the_gateway_finds_a_broker_that_comes_later(tmp_path):
    folder, port = tmp_path / "gw", free_port()
    make_gateway(folder, port)
    publisher = Publisher(enrol_device(folder, "d"))
    log = tmp_path / "gateway.log"
    command = [sys.executable, "-m", "gateway.cli", "-C", folder, "run"]
    with running(*command, log=log, ready=lambda: "Connection refused" in log.read_text()):
        for _ in range(2):
            with broker_running("mosquitto", folder, port):
                publisher.start()
                publisher.make(20)
                end = time.monotonic() + 15
                while publisher.held and time.monotonic() < end:
                    if publisher.client.is_connected():
                        publisher.send()
                    wait_until_or_give_up(lambda: not publisher.held, 1.5)
                assert not publisher.held, log.read_text()[-2000:]
                publisher.stop()
    assert check_promises(folder, [publisher]) == 40
