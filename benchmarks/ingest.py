"""What ingest costs: durable frames per CPU-second, beside a bare paho + SQLite loop.

    python benchmarks/ingest.py [--quick] [--json FILE] [--check] [--broker NAME] [--batch N]

Frames come from the shipped model on the shipped replay, one device a person, and wait at
a real broker in the gateway's session. Then one process takes them:

    gateway   edge-gateway's own loop: verify, decode, dedupe, commit, acknowledge
    bare      paho with manual acknowledgement, an `insert or ignore` by hash, nothing else

Both commit the same batches to SQLite in WAL mode with synchronous=FULL and PUBACK after
the commit. CPU time is the process's own, from the first frame to the last PUBACK; both
run on equal backlogs in turns. At batch 50 each has three runs and the quickest counts:
CPU time, too, grows when a neighbour uses the same core's caches.

Bytes are what Linux says the process made dirty on the disk (/proc/self/io write_bytes,
whole 4 KiB pages) divided by the bytes of the frames, after a final checkpoint; "asked" is
what SQLite asked to write (wchar). Fsyncs are counted as commits plus two for each time
the write-ahead log began anew, which its header counts.

--check exits 1 when the gateway is below 0.6 of the bare loop, or writes more than 2.5
bytes a byte at batch 50.
"""

import argparse
import contextlib
import json
import os
import select
import sqlite3
import subprocess
import sys
import tempfile
import time
from array import array
from hashlib import blake2s
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import paho.mqtt.client as paho  # noqa: E402
from paho.mqtt.enums import CallbackAPIVersion  # noqa: E402

from gateway import cli  # noqa: E402
from gateway.config import Domains, GatewayConfig  # noqa: E402
from gateway.custody import Custody  # noqa: E402
from gateway.mqtt import Bridge  # noqa: E402
from gateway.store import Store  # noqa: E402

GOAL_RATIO, GOAL_BYTES, GOAL_BATCH = 0.6, 2.5, 50
ROUNDS = 3  # at batch 50, taking turns
MODEL = ROOT / "models" / "watch_mlp_int8.tflite"
DOMAIN = ROOT / "models" / "watch.domain"
REPLAY = ROOT / "models" / "data" / "watch_replay.bin"
MOSQUITTO = "/usr/sbin/mosquitto"


# -- frames -------------------------------------------------------------------------


def outcomes() -> list[tuple[int, Any]]:
    """(person, Outcome) of every window of the replay, by the shipped model."""
    from edge_agent.cpython.model_litert import load_model
    from edge_agent.cpython.sensors.replay import ReplayFile
    from edge_agent.cpython.signer import HostCrypto
    from edge_agent.domain import Domain
    from edge_agent.features import Features
    from edge_agent.outcome import distil

    domain = Domain.load(DOMAIN.read_bytes(), HostCrypto())
    spec = domain.features
    features, model = Features(spec), load_model(str(MODEL))
    replay = ReplayFile(REPLAY)
    found = []
    for recording in replay.recordings:
        for n in range(replay.windows(recording, spec.window, spec.hop)):
            samples: array[int] = replay.read(recording, n * spec.hop, spec.window)
            output = model.run(features.apply(samples))
            found.append((recording.person, distil(output, domain, model.model_id, (0,))))
    return found


def make_frames(folder: Path, count: int) -> list[tuple[str, bytes]]:
    """(topic, frame): `count` of them, one device a person, taking turns."""
    from edge_agent import frame as wire
    from edge_agent.cpython.signer import HostCrypto
    from edge_agent.domain import Domain
    from gateway.projection import fingerprint

    crypto = HostCrypto()
    domain = Domain.load(DOMAIN.read_bytes(), crypto)
    by_person: dict[int, list[Any]] = {}
    for person, outcome in outcomes():
        by_person.setdefault(person, []).append(outcome)
    senders = []
    with cli.opened(folder) as (config, _, registry):
        for person, theirs in sorted(by_person.items()):
            device = registry.add(os.urandom(8), f"person-{person}", 1)
            keys = wire.DeviceKeys(crypto, device.agent, registry.secret(device.agent, 1), 1)
            senders.append((f"{config.root}/{device.agent.hex()}/up", keys, os.urandom(4), theirs))
    now_s = int(time.time()) - count
    frames = []
    for n in range(count):
        topic, keys, journal, theirs = senders[n % len(senders)]
        seq = n // len(senders) + 1
        outcome = theirs[seq % len(theirs)]
        record = wire.OutcomeRecord(
            journal, seq, 3, 40_000_000 + 997 * n, now_s + n, domain.id, outcome,
            fingerprint(domain.id, outcome.vector),
        )  # fmt: skip
        frames.append((topic, wire.seal(keys, record)))
    return frames


# -- what is measured ---------------------------------------------------------------


def io_counts() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, _, value in (line.partition(":") for line in lines)}


def log_generation(path: Path) -> int:
    """How often the write-ahead log began anew: a counter in its header."""
    try:
        with Path(f"{path}-wal").open("rb") as file:
            return int.from_bytes(file.read(16)[12:16], "big")
    except OSError:
        return 0


class Meter:
    """CPU, wall time, bytes and fsyncs between `start` and `stop`."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.commits = 0
        self.started = False

    def start(self) -> None:
        self.started = True
        self._generation = log_generation(self.database)
        self._io = io_counts()
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        self.cpu = time.process_time() - self._cpu
        self.wall = time.perf_counter() - self._wall

    def report(self, db: sqlite3.Connection, frames: int, payload: int) -> dict[str, Any]:
        anew = log_generation(self.database) - self._generation
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        io = io_counts()
        return {
            "frames": frames,
            "frame_bytes": payload / frames,
            "frames_per_cpu_s": frames / self.cpu,
            "frames_per_s": frames / self.wall,
            "us_per_frame": self.cpu / frames * 1e6,
            "commits": self.commits,
            "fsyncs_per_frame": (self.commits + 2 * anew) / frames,
            "written": (io["write_bytes"] - self._io["write_bytes"]) / payload,
            "asked": (io["wchar"] - self._io["wchar"]) / payload,
            "database": self.database.stat().st_size / payload,
        }


def take_gateway(folder: Path, count: int, batch: int, split: bool) -> dict[str, Any]:
    """Run the gateway's own loop until `count` frames are committed."""
    config = GatewayConfig(folder)
    config.batch = batch
    with cli.opened(folder, owner=True) as (_, store, registry):
        custody = Custody(store, registry, Domains(config.domains), config.root)
        meter = Meter(config.database)
        bridge = Bridge(config, custody)
        spent = time_parts(store, custody, bridge) if split else {}
        commit, note = store.commit, bridge._arrived

        def counted_commit() -> None:
            commit()
            meter.commits += 1

        def first_message(*arguments: Any) -> None:
            if not meter.started:
                meter.start()
            note(*arguments)

        store.commit = counted_commit  # type: ignore[method-assign]
        bridge._arrived = first_message  # type: ignore[method-assign]
        flush = bridge._flush

        def flush_and_look() -> None:
            flush()
            if custody.counters.counts["accepted"] >= count:
                meter.stop()
                bridge.stop()

        bridge._flush = flush_and_look  # type: ignore[method-assign]
        bridge.run()
        counts = custody.counters.counts
        found = meter.report(store.db, counts["accepted"], counts["bytes"])
        if split:
            found["split_us"] = parts_of(spent, meter.cpu, counts["accepted"])
        return found


def time_parts(store: Store, custody: Custody, bridge: Bridge) -> dict[str, float]:
    """Measure the steps of a batch from outside. Costs some itself: a run of its own."""
    spent: dict[str, float] = {}

    def timed(owner: Any, name: str, part: str) -> None:
        inner = getattr(owner, name)

        def outer(*arguments: Any) -> Any:
            start = time.thread_time()
            try:
                return inner(*arguments)
            finally:
                spent[part] = spent.get(part, 0.0) + time.thread_time() - start

        setattr(owner, name, outer)

    timed(custody, "judge", "judge")
    timed(custody, "_verdict", "verdict")
    timed(custody, "_seen", "dedupe")
    timed(store, "insert_outcomes", "insert")
    timed(store, "commit", "commit")
    timed(custody, "answers", "answers")
    return spent


def parts_of(spent: dict[str, float], cpu: float, frames: int) -> dict[str, float]:
    """Microseconds a frame, adding up to the whole."""
    verify = spent["verdict"] - spent["dedupe"]
    parts = {
        "verify and decode": verify,
        "dedupe": spent["dedupe"],
        "rows": spent["judge"] - spent["verdict"],
        "insert": spent["insert"],
        "commit": spent["commit"],
        "acknowledgements": spent["answers"],
    }
    parts["mqtt and the rest"] = cpu - sum(parts.values())
    return {name: seconds / frames * 1e6 for name, seconds in parts.items()}


def take_bare(folder: Path, count: int, batch: int) -> dict[str, Any]:
    """The least that could be called durable: hash, insert, commit, PUBACK."""
    config = GatewayConfig(folder)
    path = folder / "bare.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE frames (id BLOB PRIMARY KEY, at INTEGER, topic TEXT, frame BLOB)")
    meter = Meter(path)
    pending: list[paho.MQTTMessage] = []

    def arrived(_client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        if not meter.started:
            meter.start()
        pending.append(message)

    client = paho.Client(
        CallbackAPIVersion.VERSION2, config.user, clean_session=False, manual_ack=True
    )
    client.username_pw_set(config.user, config.password)
    client.on_message = arrived
    client.connect(config.host, config.port)
    sock = client.socket()
    taken = payload = 0
    first = 0.0
    while taken < count:
        ready, _, _ = select.select([sock], [], [], config.batch_ms / 1000)
        if ready:
            before = len(pending)
            client.loop_read()
            if not before:
                first = time.monotonic()
        if client.want_write():
            client.loop_write()
        if len(pending) >= batch or (
            pending and time.monotonic() - first >= config.batch_ms / 1000
        ):
            now = int(time.time() * 1000)
            db.execute("BEGIN IMMEDIATE")
            db.executemany(
                "INSERT OR IGNORE INTO frames VALUES (?,?,?,?)",
                [
                    (blake2s(m.payload, digest_size=16).digest(), now, m.topic, m.payload)
                    for m in pending
                ],
            )
            db.execute("COMMIT")
            meter.commits += 1
            for message in pending:
                client.ack(message.mid, 1)
            taken += len(pending)
            payload += sum(len(m.payload) for m in pending)
            pending.clear()
        client.loop_misc()
    meter.stop()
    found = meter.report(db, taken, payload)
    client.disconnect()
    db.close()
    return found


# -- the stage ----------------------------------------------------------------------


@contextlib.contextmanager
def broker(kind: str, folder: Path, port: int) -> Any:
    if kind == "mosquitto":
        command = [MOSQUITTO, "-c", str(folder / "mosquitto" / "mosquitto.conf")]
    else:
        command = [sys.executable, "-m", "gateway.broker", str(folder / "broker.toml")]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        import socket

        end = time.monotonic() + 15
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                break
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{kind} does not start")
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(10)


def load_backlog(folder: Path, frames: list[tuple[str, bytes]]) -> None:
    """Make the gateway's session, leave it, and publish everything into it."""
    config = GatewayConfig(folder)

    def client(name: str, clean: bool) -> paho.Client:
        made = paho.Client(CallbackAPIVersion.VERSION2, name, clean_session=clean)
        made.username_pw_set(config.user, config.password)
        return made

    # The gateway's rules let it read `up` only, so each device sends its own.
    reader = client(config.user, False)
    granted: list[int] = []
    reader.on_subscribe = lambda *_: granted.append(1)
    reader.on_connect = lambda *_: reader.subscribe(f"{config.root}/+/up", 1)
    reader.connect(config.host, config.port)
    while not granted:
        reader.loop(0.1)
    reader.disconnect()
    by_topic: dict[str, list[bytes]] = {}
    for topic, frame in frames:
        by_topic.setdefault(topic, []).append(frame)
    with cli.opened(folder) as (_, _, registry):
        passwords = {d.agent.hex(): registry.password(d) for d in registry.devices()}
    writers = []
    for topic in by_topic:
        agent = topic.split("/")[-2]
        writer = paho.Client(CallbackAPIVersion.VERSION2, agent, clean_session=True)
        writer.username_pw_set(agent, passwords[agent])
        writer.max_inflight_messages_set(100)
        writer.connect(config.host, config.port)
        writer.loop_start()
        writers.append((topic, writer))
    # In turns, as they would come, and never too far ahead of the broker.
    infos = []
    clients = dict(writers)
    for topic, frame in frames:
        infos.append(clients[topic].publish(topic, frame, 1))
        if len(infos) >= 400:
            infos.pop(0).wait_for_publish(20)
    for info in infos:
        info.wait_for_publish(20)
    for _, writer in writers:
        writer.disconnect()
        writer.loop_stop()


def free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def measure(kind: str, who: str, count: int, batch: int, place: Path) -> dict[str, Any]:
    """One run: a fresh folder, broker and backlog; the taker in a process of its own."""
    with tempfile.TemporaryDirectory(dir=place) as text:
        folder = Path(text) / "gw"
        port = free_port()
        with contextlib.redirect_stdout(None):
            cli.main(["init", str(folder), "--domain", str(DOMAIN), "--port", str(port)])
        frames = make_frames(folder, count)
        with cli.opened(folder) as (config, _, registry):
            cli.enrol.tell_brokers(config, registry)
        with broker(kind, folder, port):
            load_backlog(folder, frames)
            done = subprocess.run(
                [sys.executable, __file__, "--take", who, str(folder), str(count), str(batch)],
                capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            if done.returncode:
                raise SystemExit(done.stderr)
        return dict(json.loads(done.stdout))


def take(who: str, folder: str, count: str, batch: str) -> None:
    if who == "bare":
        found = take_bare(Path(folder), int(count), int(batch))
    else:
        found = take_gateway(Path(folder), int(count), int(batch), who == "split")
    print(json.dumps(found))


LINE = (
    "{broker:10} {batch:5} {who:8} {us_per_frame:6.1f} {frames_per_cpu_s:8.0f} "
    "{frames_per_s:8.0f} {fsyncs_per_frame:7.4f} {written:7.2f} {asked:6.2f} {database:5.2f}"
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer frames, batch 50 only")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="exit 1 below a goal")
    parser.add_argument("--broker", choices=("iotcore", "mosquitto"), help="only this one")
    parser.add_argument("--batch", type=int, help="only this batch size")
    parser.add_argument("--frames", type=int, help="how many (default 20000, quick 5000)")
    parser.add_argument("--dir", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--take", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.take:
        take(*options.take)
        return 0
    kinds = [options.broker] if options.broker else ["iotcore", "mosquitto"]
    if "mosquitto" in kinds and not os.path.exists(MOSQUITTO):
        raise SystemExit("mosquitto is not installed: apt install mosquitto")
    batches = [GOAL_BATCH] if options.quick else [1, 20, GOAL_BATCH, 100]
    if options.batch:
        batches = [options.batch]
    count = options.frames or (4000 if options.quick else 20000)
    place = options.dir or Path(tempfile.gettempdir())
    rows = []
    print(
        f"{'broker':10} {'batch':>5} {'who':8} {'us/fr':>6} {'fr/CPU-s':>8} {'fr/s':>8} "
        f"{'fsync/f':>7} {'written':>7} {'asked':>6} {'db':>5}"
    )
    for kind in kinds:
        for batch in batches:
            size = min(count, 2000) if batch == 1 else count
            runs: dict[str, list[dict[str, Any]]] = {"bare": [], "gateway": []}
            for _ in range(ROUNDS if batch == GOAL_BATCH else 1):
                for who, taken in runs.items():
                    taken.append(measure(kind, who, size, batch, place))
            for who, taken in runs.items():
                row = min(taken, key=lambda run: float(run["us_per_frame"]))
                row.update(broker=kind, batch=batch, who=who)
                rows.append(row)
                print(LINE.format(**row), flush=True)
    split = measure(kinds[0], "split", count, GOAL_BATCH, place)["split_us"]
    print("\nwhere the gateway's time goes, us a frame (batch 50, with the cost of looking):")
    for name, us in split.items():
        print(f"  {name:20} {us:6.1f}")
    ratios = {}
    for row in rows:
        if row["who"] == "gateway":
            (peer,) = [
                r for r in rows
                if r["who"] == "bare" and (r["broker"], r["batch"]) == (row["broker"], row["batch"])
            ]  # fmt: skip
            name = f"{row['broker']} batch {row['batch']}"
            ratios[name] = row["frames_per_cpu_s"] / peer["frames_per_cpu_s"]
    print(f"\nframes are {rows[0]['frame_bytes']:.0f} bytes; frames per CPU-second beside bare:")
    for name, ratio in ratios.items():
        print(f"  {name:20} {ratio:6.2f}  (goal {GOAL_RATIO} at batch {GOAL_BATCH})")
    at_goal = [r for r in rows if r["who"] == "gateway" and r["batch"] == GOAL_BATCH]
    failed = [
        f"{r['broker']}: {r['written']:.2f} bytes written a byte, goal {GOAL_BYTES}"
        for r in at_goal if r["written"] > GOAL_BYTES
    ] + [
        f"{name}: {ratio:.2f} of bare, goal {GOAL_RATIO}"
        for name, ratio in ratios.items()
        if name.endswith(f"batch {GOAL_BATCH}") and ratio < GOAL_RATIO
    ]  # fmt: skip
    if at_goal and not all(r["written"] for r in at_goal):
        print("this file system does not count written bytes: choose another with --dir")
    if options.json:
        options.json.write_text(
            json.dumps({"rows": rows, "split_us": split, "ratios": ratios}, indent=1) + "\n"
        )
    for line in failed:
        print("below goal:", line)
    return 1 if options.check and failed else 0


if __name__ == "__main__":
    sys.exit(main())
