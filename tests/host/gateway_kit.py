"""What the gateway's tests share: a domain, devices that make real frames, processes.

Every process started here is ended by its own id, in `finally`.
"""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent import frame as wire
from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain, Features, VectorSpace, make_domain
from edge_agent.outcome import Outcome
from gateway.cli import main, opened
from gateway.custody import Custody
from gateway.enrol import enrol
from gateway.keys import Registry
from gateway.projection import fingerprint
from gateway.store import Store

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_800_000_000_000  # a fixed arrival time, 2027
CRYPTO = HostCrypto()
MASTER = bytes(range(32))
GATEWAY = b"\x11" * 8


def domain_bytes(labels=("rest", "lift", "turn"), version=1):
    key = bytes(range(32))
    space = VectorSpace(64, bytes(32), 1, 0, Features("stats", 6, 128, 64, (0,), (1,), 0))
    return make_domain(
        CRYPTO, key, CRYPTO.public_key(key), "motion", version, space,
        list(labels), ["unsure"], ["stop"], ["confirmed", "corrected"],
    )  # fmt: skip


DOMAIN = Domain.load(domain_bytes(), CRYPTO)


class Device:
    """Makes the frames of one device. `secret` comes from the gateway's registry."""

    def __init__(self, agent, secret, generation=1, journal=None, boot=1):
        self.agent = agent
        self.keys = wire.DeviceKeys(CRYPTO, agent, secret, generation)
        self.journal = journal or os.urandom(4)
        self.boot = boot
        self.uptime_ms = 1000

    def topic(self, name="up"):
        return f"qis/1/{self.agent.hex()}/{name}"

    def vector(self, salt):
        return bytes(b if b != 128 else 0 for b in CRYPTO.sha256(b"%d" % salt) * 2)

    def record(self, seq, **kw):
        vector = self.vector(kw.pop("salt", seq))
        utc_s = kw.pop("utc_s", 0)
        self.uptime_ms += 10
        uptime = kw.pop("uptime_ms", self.uptime_ms)
        boot = kw.pop("boot", self.boot)
        domain = kw.pop("domain", DOMAIN)
        finger = kw.pop("fingerprint", None) or fingerprint(domain.id, vector)
        outcome = Outcome(vector, kw.pop("label", 1), kw.pop("confidence", 200), **kw)
        return wire.OutcomeRecord(
            self.journal, seq, boot, uptime, utc_s, domain.id, outcome, finger
        )

    def outcome(self, seq, encrypt=False, pad=0, **kw):
        """An outcome frame."""
        return wire.seal(self.keys, self.record(seq, **kw), encrypt=encrypt, pad=pad)

    def feedback(self, seq, about, label=1, result=0):
        self.uptime_ms += 10
        outcome = Outcome(None, label, None, result=result, about=about)
        record = wire.OutcomeRecord(
            self.journal, seq, self.boot, self.uptime_ms, 0, DOMAIN.id, outcome, None
        )
        return wire.seal(self.keys, record)

    def hello(self, next_seq, floor=None, nonce=None, **kw):
        self.uptime_ms += 10
        fields = {
            "journal": self.journal, "next_seq": next_seq, "boot": self.boot,
            "uptime_ms": self.uptime_ms, "utc_s": 0, "floor": next_seq if floor is None else floor,
            "nonce": nonce or os.urandom(8), "counter": 0,
            "oldest_generation": self.keys.generation, "pending": 0, "dropped": {}, "gone": [],
            "model": None, "version": "0.1", "cfg_version": 0, "head": None, "taken": None,
        }  # fmt: skip
        fields.update(kw)
        return wire.seal(self.keys, wire.Hello(**fields))

    def read(self, payload):
        """The message in a frame from the gateway."""
        keyring = lambda agent, generation: self.keys  # noqa: E731
        return wire.open_frame(payload, keyring, wire.DOWN, self.agent).message


class Bench:
    """A gateway without a broker: custody on a real database."""

    def __init__(self, folder: Path, domains=None):
        self.path = Path(folder) / "gateway.db"
        self.domains = domains if domains is not None else {DOMAIN.id: DOMAIN}
        self.now = NOW
        self.names = 0
        self.open()

    def open(self):
        self.store = Store(self.path, owner=True, now_ms=self.now)
        self.registry = Registry(self.store, MASTER, GATEWAY)
        self.custody = Custody(self.store, self.registry, self.domains)

    def close(self):
        self.store.close()

    def crash(self):
        """The process is gone; the database is opened anew."""
        self.store.close()
        self.open()

    def device(self, **kw):
        agent = kw.pop("agent", None) or os.urandom(8)
        self.names += 1
        self.registry.add(agent, f"d{self.names}-{agent.hex()[:4]}", self.now)
        return Device(agent, self.registry.secret(agent, 1), **kw)

    def send(self, device, *frames, topic=None):
        """One batch; returns the acks, opened."""
        self.now += 1000
        plan = self.custody.judge(
            [(device.topic() if topic is None else topic, f) for f in frames], self.now
        )
        self.custody.commit(plan)
        return [device.read(payload) for _, payload in self.custody.answers(plan)]

    def rows(self, what="stream, seq"):
        return self.store.run(f"SELECT {what} FROM outcomes ORDER BY id").fetchall()

    def frames(self):
        return [f for (f,) in self.store.run("SELECT frame FROM frames ORDER BY id")]

    def stream(self, device):
        (found,) = [s for s in self.custody.streams() if s.journal == device.journal]
        return found


def gateway(*arguments, check=True):
    """`edge-gateway` with these arguments, without the cost of a process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code or 0
    assert not check or code == 0, err.getvalue()
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


@contextlib.contextmanager
def running(*command, log: Path, ready=None, seconds=15, **kw):
    """A process of its own; `ready` is called until true."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [str(c) for c in command], stdout=out, stderr=out, cwd=kw.pop("cwd", ROOT), **kw
        )
    try:
        if ready is not None:
            wait_until(ready, seconds, lambda: log.read_text(), process)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def wait_until(condition, seconds=15, explain=lambda: "", process=None):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}:\n{explain()}")
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s:\n{explain()}")


def make_gateway(folder: Path, port: int):
    """A folder made by `edge-gateway init`, and its configuration."""
    domain = folder.parent / "motion.domain"
    domain.write_bytes(domain_bytes())
    gateway("init", folder, "--domain", domain, "--port", port)
    return json.loads((folder / "gateway.json").read_text())


def enrol_device(folder, name):
    """As `edge-gateway enrol` does, without the start of a process; the path of its file."""
    out = Path(folder).parent / f"{name}.json"
    with opened(Path(folder)) as (config, _, registry):
        enrol(config, registry, name, os.urandom(8), out, NOW)
    return out


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def listening(port):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 0.2).close()
        return True
    return False


@contextlib.contextmanager
def broker_running(kind, folder, port):
    """ "iotcore" or "mosquitto", with the files that the gateway made."""
    if kind == "mosquitto":
        command = ["/usr/sbin/mosquitto", "-c", folder / "mosquitto" / "mosquitto.conf"]
    else:
        command = [sys.executable, "-m", "gateway.cli", "-C", folder, "broker"]
    log = folder.parent / f"{kind}.log"
    with running(*command, log=log, ready=lambda: listening(port)) as process:
        yield process


def gateway_running(folder, log):
    """`edge-gateway run`, until it is connected to the broker."""
    start = log.stat().st_size if log.exists() else 0

    def ready():
        return "connected to" in log.read_text()[start:]

    return running(sys.executable, "-m", "gateway.cli", "-C", folder, "run", log=log, ready=ready)


class Publisher:
    """The device side with a real client: holds frames until the gateway acknowledges."""

    def __init__(self, path: Path, journal=None):
        config = json.loads(Path(path).read_text())
        self.port = config["broker"]["port"]
        self.device = Device(
            bytes.fromhex(config["agent"]), bytes.fromhex(config["key"]), config["generation"],
            journal,
        )  # fmt: skip
        self.held = {}  # seq -> frame
        self.made = {}
        self.acks = []
        self.refused = {}
        self.lock = threading.Lock()
        self.greeting = None
        self.ready = threading.Event()
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=config["agent"], clean_session=False
        )
        self.client.username_pw_set(config["agent"], self.device.keys.mqtt_password())
        self.client.reconnect_delay_set(1, 1)
        self.client.will_set(self.device.topic("state"), b"offline", 1, True)
        self.client.on_connect = self._on_connect
        self.client.on_message = self._on_message

    def start(self):
        self.client.connect_async("127.0.0.1", self.port, 10)
        self.client.loop_start()
        return self

    def stop(self):
        self.client.disconnect()
        self.client.loop_stop()

    def _on_connect(self, client, _data, _flags, reason, _props):
        if reason.is_failure:
            return
        client.publish(self.device.topic("state"), b"online", 1, True)
        client.subscribe([(self.device.topic(n), 1) for n in ("ack", "box", "cfg", "ota")])
        self.greeting = os.urandom(8)
        with self.lock:
            floor = min(self.held, default=len(self.made) + 1)
            hello = self.device.hello(len(self.made) + 1, floor=floor, nonce=self.greeting)
        client.publish(self.device.topic(), hello, 1)
        self.ready.set()

    def _on_message(self, _client, _data, message):
        if not message.topic.endswith("/ack"):
            return
        ack = self.device.read(message.payload)
        if ack.journal != self.device.journal:
            return
        with self.lock:
            self.acks.append(ack)
            for seq, reason in ack.refused:
                self.refused[seq] = reason
                self.held.pop(seq, None)
            for first, last in ack.ranges:
                for seq in [s for s in self.held if first <= s <= last]:
                    del self.held[seq]

    def make(self, count, **fields):
        with self.lock:
            for _ in range(count):
                seq = len(self.made) + 1
                self.made[seq] = self.held[seq] = self.device.outcome(seq, **fields)

    def send(self, limit=500):
        """Publish what is held, oldest first."""
        with self.lock:
            batch = sorted(self.held.items())[:limit]
        for _, frame in batch:
            self.client.publish(self.device.topic(), frame, 1)
        return len(batch)
