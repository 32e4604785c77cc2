"""What mailboxes cost and save, beside a broker's own queue.

    python benchmarks/mail.py [--quick] [--json FILE] [--check]

Away: a device sleeps for days while its gateway makes a new head of twelve rows and finds ten
outcomes for it every day; then it wakes. Counted are frames and bytes of the real boxes, sealed:

    mailbox  gateway/mailbox.py and rounds.py with the device's own machine at the other end
    queue    the same boxes published as they are made to a persistent session, QoS 1: what a
             real mosquitto keeps (max_queued_messages 0) and delivers at the next CONNECT
    queue of 1000   mosquitto's default: the rest is dropped without a word to anybody

Cost: CPU microseconds and, where something is synced, wall time, on a database on this
machine's disk: an item put, a hello that brings no news (beside judging that hello at all),
an item bound, sealed and confirmed, and a round in which nobody has mail, among 1,000 devices
that take mail. Lock: the longest round while another process holds the file.

--check exits 1 when the mailbox does not save half of the queue's bytes after ten days, when a
hello without news costs more than judging it, or when a locked file holds custody up for more
than 150 ms.
"""

import argparse
import json
import os
import sqlite3
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "host")]

from brokers import Mosquitto  # noqa: E402
from gateway_kit import Bench, Device  # noqa: E402

from edge_agent.effects import Ids  # noqa: E402
from edge_agent.head import Row, encode_row  # noqa: E402
from edge_agent.mail import Mail  # noqa: E402
from edge_agent.synthesis import Neighbour, encode_neighbour  # noqa: E402
from gateway.mailbox import NEIGHBOUR, Mailbox  # noqa: E402
from gateway.rounds import Rounds  # noqa: E402

ROWS, FOUND = 12, 10
DAY_MS = 86_400_000
EXPIRES_DAYS = 7
PEERS = {"neighbours": 16, "rows": 16, "depth": 3, "ttl_h": 720}
GOAL_SAVED, GOAL_LOCK_MS = 0.5, 150.0


def head(version: int) -> list[bytes]:
    def row(i: int) -> bytes:
        return encode_row(
            Row(version, bytes(8), i, ROWS, os.urandom(64), version * 1000 - i, 1 << 30, 31)
        )

    return [row(i) for i in range(ROWS)]


def outcome() -> bytes:
    return encode_neighbour(Neighbour(os.urandom(16), os.urandom(64), 3, 100, 0, 0))


class Site:
    """Custody, rounds and one sender on real databases."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench(folder)
        self.path = folder / "mailbox.db"
        self.rounds = Rounds(self.path, self.bench.custody)
        self.sender = Mailbox(self.path, now_ms=lambda: self.bench.now)
        self.at_ms = 0

    def close(self) -> None:
        self.rounds.close()
        self.sender.close()
        self.bench.close()

    def hello(self, device: Device, taken: int, counter: int) -> list[bytes]:
        """Boxes that a hello brings."""
        self.bench.now += 1000
        self.at_ms += 1000
        frame = device.hello(1, taken=taken, counter=counter)
        plan = self.bench.custody.judge([(device.topic(), frame)], self.bench.now)
        self.bench.custody.commit(plan)
        self.bench.custody.answers(plan)
        self.rounds.heard(plan)
        return [payload for _, payload in self.rounds.turn(self.bench.now, self.at_ms)]


def away(folder: Path, days: int) -> dict[str, Any]:
    """Frames and bytes that reach the device when it wakes."""
    site = Site(folder)
    device = site.bench.device()
    made: list[bytes] = []
    for day in range(days):
        site.bench.now += DAY_MS
        expires = site.bench.now + EXPIRES_DAYS * DAY_MS
        rows = head(day + 1)
        site.sender.put_head(device.agent, day + 1, rows, expires)
        found = [outcome() for _ in range(FOUND)]
        for body in found:
            site.sender.put(device.agent, NEIGHBOUR, body, 2, expires, body[2:18])
        for type_, body in [(1, row) for row in rows] + [(2, body) for body in found]:
            sealed = site.bench.custody.down.box(
                device.agent, len(made) + 1, type_, body, False, site.bench.now
            )
            assert sealed is not None
            made.append(sealed[1])
    mail = Mail(PEERS, Ids(), None, 16)
    sent: list[bytes] = []
    counter = 0
    while boxes := site.hello(device, mail.taken, counter):
        sent += boxes
        counter = take(mail, device, boxes)
    assert mail.head is not None and mail.head.version == days
    assert site.sender.waiting(device.agent).items == 0
    site.close()
    found = {"days": days, "mailbox": row_of(sent, mail)}
    for name, limit in (("queue", 0), ("queue of 1000", 1000)):
        got = queued(folder, device.topic("box"), made, limit)
        mail = Mail(PEERS, Ids(), None, 16)
        take(mail, device, got)
        assert mail.taken == len(got)
        found[name] = row_of(got, mail)
    return found | {"bytes a box": {"row": len(made[0]), "outcome": len(made[-1])}}


def take(mail: Mail, device: Device, boxes: list[bytes]) -> int:
    """The device's machine takes these; the counter of the last one."""
    counter = 0
    for raw in boxes:
        box = device.read(raw)
        counter = box.counter
        mail.on_box(box, 0)
    return counter


def row_of(boxes: list[bytes], mail: Mail) -> dict[str, int]:
    assert mail.head is not None
    size = sum(len(box) for box in boxes)
    return {"frames": len(boxes), "bytes": size, "newest head": mail.head.version}


def queued(folder: Path, topic: str, boxes: list[bytes], limit: int) -> list[bytes]:
    """What a real mosquitto that queues so many (0: all) delivers to a device that was away."""
    broker = Mosquitto(folder, "allow_anonymous true", f"max_queued_messages {limit}").start()
    try:
        got: list[bytes] = []
        heard = threading.Event()

        def on_message(_client: Any, _data: Any, message: paho.MQTTMessage) -> None:
            got.append(message.payload)
            heard.set()

        def client(name: str, clean: bool) -> paho.Client:
            made = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, clean_session=clean)
            made.on_message = on_message
            made.connect("127.0.0.1", broker.port)
            made.loop_start()
            return made

        def leave(one: paho.Client) -> None:
            one.disconnect()
            one.loop_stop()

        known = threading.Event()
        device = client("device", clean=False)
        device.on_subscribe = lambda *_: known.set()
        device.subscribe(topic, 1)
        assert known.wait(10)
        leave(device)
        sender = client("gateway", clean=True)
        for last in [sender.publish(topic, box, 1) for box in boxes]:
            last.wait_for_publish(60)
        leave(sender)
        device = client("device", clean=False)
        while heard.wait(1.0):  # until it has been quiet for a second
            heard.clear()
        leave(device)
        return got
    finally:
        broker.kill()


class Cost:
    """CPU and wall microseconds of something done `count` times."""

    def __init__(self, work: Any, count: int) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            work()
        self.cpu = 1e6 * (time.process_time() - cpu) / count
        self.wall = 1e6 * (time.perf_counter() - wall) / count

    def as_dict(self) -> dict[str, float]:
        return {"cpu_us": round(self.cpu, 1), "wall_us": round(self.wall, 1)}


def costs(folder: Path, count: int) -> dict[str, Any]:
    site = Site(folder)
    device = site.bench.device()
    body = outcome()
    found: dict[str, Any] = {}
    site.sender.put(device.agent, NEIGHBOUR, body, 2, 0)
    counter = 0
    for taken in (0, 0, 1):  # asked, sent, taken
        for raw in site.hello(device, taken, counter):
            counter = device.read(raw).counter

    def put() -> None:
        site.sender.put(device.agent, NEIGHBOUR, os.urandom(90), 1, 0)

    found["put"] = Cost(put, min(count, 120)).as_dict()
    # Everything that waits, eight at a time.
    begun, cpu, taken, items = time.perf_counter(), time.process_time(), 1, 0
    while boxes := site.hello(device, taken, counter):
        taken += len(boxes)
        items += len(boxes)
        counter = device.read(boxes[-1]).counter
    found["item, to confirmed"] = {
        "cpu_us": round(1e6 * (time.process_time() - cpu) / items, 1),
        "wall_us": round(1e6 * (time.perf_counter() - begun) / items, 1),
    }
    frames = [(device.topic(), device.hello(1, taken=taken, counter=counter)) for _ in range(count)]

    def judged() -> None:
        plan = site.bench.custody.judge([frames.pop()], site.bench.now)
        site.bench.custody.commit(plan)
        site.bench.custody.answers(plan)
        plans.append(plan)

    plans: list[Any] = []
    found["hello, custody"] = Cost(judged, count).as_dict()

    def mail() -> None:
        site.rounds.heard(plans.pop())
        assert site.rounds.turn(site.bench.now, site.at_ms) == []

    found["hello without news, mail"] = Cost(mail, count).as_dict()
    for _ in range(1000):
        site.rounds.postman.heard(os.urandom(8), b"n", 1, "same", 0)
    site.rounds.turn(site.bench.now, site.at_ms)
    found["idle round, 1,000 devices"] = Cost(
        lambda: site.rounds.turn(site.bench.now, site.at_ms), count
    ).as_dict()
    site.close()
    return found


def locked(folder: Path) -> float:
    """Milliseconds of the longest round while another process writes."""
    site = Site(folder)
    device = site.bench.device()
    other = sqlite3.connect(site.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    longest = 0.0
    for _ in range(10):
        site.at_ms += 5000
        frame = device.hello(1, taken=0)
        plan = site.bench.custody.judge([(device.topic(), frame)], site.bench.now)
        site.bench.custody.commit(plan)
        site.rounds.heard(plan)
        begun = time.perf_counter()
        site.rounds.turn(site.bench.now, site.at_ms)
        longest = max(longest, 1000 * (time.perf_counter() - begun))
    other.execute("ROLLBACK")
    other.close()
    failures = site.rounds.counters.counts["mail_failures"]
    assert failures == 10, failures
    site.close()
    return longest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    found: dict[str, Any] = {"away": []}
    with tempfile.TemporaryDirectory() as name:
        parts = iter(range(100))

        def folder() -> Path:
            path = Path(name) / str(next(parts))
            path.mkdir()
            return path

        for days in (1, 10) if options.quick else (1, 3, 10, 60):
            found["away"].append(away(folder(), days))
        found["cost"] = costs(folder(), 200 if options.quick else 1000)
        found["lock_ms"] = round(locked(folder()), 1)

    print(f"{'days away':>9}  {'mailbox':>16}  {'queue':>16}  {'queue of 1000':>16}  newest head")
    for row in found["away"]:
        cells = [f"{row[k]['frames']:5} {row[k]['bytes'] / 1000:7.1f} kB" for k in
                 ("mailbox", "queue", "queue of 1000")]  # fmt: skip
        heads = "/".join(str(row[k]["newest head"]) for k in ("mailbox", "queue", "queue of 1000"))
        print(f"{row['days']:9}  {'  '.join(cells)}  {heads}")
    size = found["away"][-1]["bytes a box"]
    print(f"a box: row of a head {size['row']} bytes, outcome {size['outcome']} bytes")
    for what, cost in found["cost"].items():
        print(f"{what:28} {cost['cpu_us']:8.1f} us CPU {cost['wall_us']:9.1f} us wall")
    print(f"longest round while mailbox.db is locked: {found['lock_ms']:.0f} ms")
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    ten = next(row for row in found["away"] if row["days"] == 10)
    faults = []
    if ten["mailbox"]["bytes"] > (1 - GOAL_SAVED) * ten["queue"]["bytes"]:
        faults.append("the mailbox saves less than half of the queue's bytes")
    cost = found["cost"]
    if cost["hello without news, mail"]["cpu_us"] > cost["hello, custody"]["cpu_us"]:
        faults.append("a hello without news costs more than judging it")
    if found["lock_ms"] > GOAL_LOCK_MS:
        faults.append("a locked file holds custody up")
    for fault in faults:
        print(f"FAILED: {fault}")
    return 1 if options.check and faults else 0


if __name__ == "__main__":
    sys.exit(main())
