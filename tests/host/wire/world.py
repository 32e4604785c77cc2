"""Devices, broker and gateway in one virtual time, the moves of fate, and the judgement."""

import atexit
import shutil
import tempfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from sim_flash import SimFlash

from edge_agent.domain import Domain, Features, VectorSpace, make_domain
from edge_agent.frame import outcome_id
from gateway.keys import Registry, device_key
from gateway.store import Store
from wire.broker import Broker
from wire.device import CRYPTO, EMBEDDING, Device
from wire.gateway import GATEWAY, MASTER, ROOT, Gateway
from wire.ledger import Ledger, Memory, Violation
from wire.timeline import Timeline

UTC_0 = 1_800_000_000_000  # when every world begins, 2027
OWNER = b"\x07" * 32
# label: what becomes of it.  "alarm" is urgent, "trace" bulk, "level" coalesces.
LABELS = ("rest", "walk", "alarm", "trace", "level")
REST, WALK, ALARM, TRACE, LEVEL = range(5)
RESULTS = ("confirmed", "corrected")
AGENTS = [b"device-%d" % i for i in range(4)]
DAY_MS = 86_400_000
STORM = 400_000  # events in one stretch of time: more means that something runs in circles


@lru_cache
def domain() -> Domain:
    space = VectorSpace(
        EMBEDDING, "profile/wire", 1, 0, Features("stats8", 1, 4, 4, (0,) * 8, (1,) * 8, 4)
    )
    public = CRYPTO.public_key(OWNER)
    data = make_domain(CRYPTO, OWNER, public, "wire", 1, space, LABELS, (), (), RESULTS)
    return Domain.load(data, CRYPTO)


@lru_cache
def template() -> Path:
    """A database with all agents enrolled; every world starts from a copy."""
    folder = Path(tempfile.mkdtemp(prefix="wire-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "template.db"
    store = Store(path, owner=True, now_ms=UTC_0)
    registry = Registry(store, MASTER, GATEWAY)
    for agent in AGENTS:
        registry.add(agent, agent.decode(), UTC_0)
    store.run("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    return path


def settings(agent: bytes, generation: int = 1, **more: Any) -> dict[str, Any]:
    """What `edge-gateway enrol --out` writes, with small numbers. more: whole sections."""
    fields: dict[str, Any] = {
        "agent": agent.hex(),
        "key": device_key(CRYPTO, MASTER, agent, generation).hex(),
        "generation": generation,
        "sensor": {"stall_s": 0},
        "journal": {
            "segment_bytes": 2048,
            "max_segments": 24,
            "reserve": [2, 4, 0],
            "batch": 4,
            "batch_ms": 1000,
        },
        "delivery": {"window": 4, "custody": 16, "ack_timeout_s": 5, "late_s": 60},
        "priorities": {"alarm": 0, "trace": 2},
        "coalesce": ["level"],
    }
    for name, value in more.items():
        if isinstance(value, dict):
            fields[name] = dict(fields.get(name, {}), **value)
        else:
            fields[name] = value
    return fields


class World:
    """Use as a context manager. seed: of everything that is left to chance."""

    def __init__(self, seed: int = 0, devices: int = 1, **more: Any) -> None:
        self.rng = Random(seed)
        self.time = Timeline()
        self.ledger = Ledger()
        self.domain = domain()
        self.domains = {self.domain.id: self.domain}
        self.broker = Broker(self.time, self.rng)
        self.folder = Path(tempfile.mkdtemp(prefix="wire-"))
        self.gateway = Gateway(self, self.folder, template())
        self.devices: list[Device] = []
        # Agents of which two flashes with a common past have existed.
        self.copied: set[bytes] = set()
        self.generations: dict[bytes, int] = {}  # newest key given to a device
        # Agents whose numbers began again with 1.
        self.wiped: set[bytes] = set()
        # Whether messages of one device may have overtaken each other or come from the
        # past, which no broker that keeps to the standard does.
        self.rough = False
        self.more = more
        for agent in AGENTS[:devices]:
            self.add(agent, SimFlash(self.rng.randrange(1 << 30)), Memory())

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.gateway.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def utc_ms(self) -> int:
        return UTC_0 + self.time.now

    def add(self, agent: bytes, flash: SimFlash, memory: Memory) -> Device:
        name = "%s/%d" % (agent.decode(), len(self.devices))
        generation = self.gateway.generation(agent)
        fields = settings(agent, generation, **self.more)
        device = Device(name, self, agent, fields, flash, memory)
        self.devices.append(device)
        device.boot()
        return device

    # -- time -----------------------------------------------------------------------

    def run(self, ms: int) -> None:
        """Let this much time pass."""
        end = self.time.now + ms
        steps = 0
        while True:
            times = [self.time.next_at(), self.gateway.wake()]
            times += [device.wake() for device in self.devices]
            at = min((t for t in times if t is not None), default=end + 1)
            if at > end:
                break
            self.time.now = max(self.time.now, at)
            steps += 1 + self.time.run_due()
            self.gateway.tick()
            for device in self.devices:
                wake = device.wake()
                if wake is not None and wake <= self.time.now:
                    device.tick()
            if self.ledger.failed is not None:
                raise self.ledger.failed
            if steps > STORM:
                self.ledger.fail("a storm: %d events in %d ms", steps, ms)
        self.time.now = end

    def until(self, what: Any, limit_ms: int, step_ms: int = 500) -> bool:
        """Let time pass until `what()`, at most `limit_ms`."""
        end = self.time.now + limit_ms
        while not what():
            if self.time.now >= end:
                return False
            self.run(step_ms)
        return True

    def heal(self) -> None:
        """Everything works again, and every machine is on."""
        self.broker.up = True
        self.broker.repeat = 0.0
        self.gateway.link.heal()
        self.gateway.disk_full = False
        self.gateway.crash_at = None
        self.gateway.start()
        for device in self.devices:
            device.link.heal()
            device.flash.cut_at = -1
            device.flash.capacity = 0
            self._begin_generations(device.agent)
            device.boot()

    def quiet(self) -> bool:
        """Nothing is left to do for any device that the gateway serves."""
        return all(d.quiet() for d in self.devices)

    def settle(self, limit_ms: int = 6 * 3_600_000) -> Counter[str]:
        """Heal, wait until quiet, let every device say hello once more, then judge."""
        self.heal()
        for last in (False, True):
            if not self.until(self.quiet, limit_ms, 2000):
                waiting = {d.name: d.status() for d in self.devices if not d.quiet()}
                self.ledger.fail("not quiet after %d s: %r", limit_ms // 1000, waiting)
            if not last:
                # The hello after a restart names the floor that the journal has saved.
                for device in self.devices:
                    device.save()
                    self.power_cut(device)
                self.run(30_000)
        return self.judge()

    def judge(self) -> Counter[str]:
        if self.ledger.failed is not None:
            raise self.ledger.failed
        ends = self.ledger.judge(self.gateway, self.devices)
        for stream in self.gateway.custody.streams():
            seqs = {s for s in range(stream.held.last() + 1) if s in stream.held}
            rows = {
                seq
                for agent, journal, seq, _ in self.gateway.rows()
                if (agent, journal) == (stream.agent, stream.journal)
            }
            if seqs != rows:
                self.ledger.fail("held ranges and rows differ: %r %r", stream.held, rows ^ seqs)
            fair = not self.rough and not self.gateway.restores
            if stream.lost and fair and stream.agent not in self.copied:
                self.ledger.fail("a false alarm: %r lost by restore", stream.lost)
        return ends

    # -- moves ----------------------------------------------------------------------

    def cut(self, device: Device, reason: str = "network") -> None:
        """The connection breaks; what was under way is lost."""
        if device.session.connection is not None:
            device.session.connection.close(reason)

    def cut_gateway(self) -> None:
        if self.gateway.connection is not None:
            self.gateway.connection.close("network")

    def power_cut(self, device: Device, restart_ms: int = 2000) -> None:
        """Between two writes."""
        if device.driver is not None:
            device.die(restart_ms)

    def reflash(self, device: Device) -> None:
        """The flash is wiped: what it held is gone, and so is its journal id."""
        self.wiped.add(device.agent)
        device.die(None)
        device.flash = SimFlash(self.rng.randrange(1 << 30))
        device.memory = Memory()
        device.forget_batch()
        device.boot()

    def image(self, device: Device) -> Any:
        """A copy of the flash as it is now."""
        self.copied.add(device.agent)
        return device.flash.clone(), device.memory.copy(), device.batch()

    def write_image(self, device: Device, image: Any) -> None:
        """The flash is overwritten by an older copy, of itself or of a sister."""
        device.die(None)
        flash, memory, batch = image
        device.flash = flash.clone().power_cycle(self.rng.randrange(1 << 30))
        device.memory = memory.copy()
        device.forget_batch(batch)
        device.boot()

    def clone(self, device: Device) -> Device:
        """A second machine with the same flash content, both running."""
        flash, memory, batch = self.image(device)
        flash = flash.power_cycle(self.rng.randrange(1 << 30))
        name = "%s/%d" % (device.agent.decode(), len(self.devices))
        twin = Device(name, self, device.agent, device.settings, flash, memory)
        twin.forget_batch(batch)
        self.devices.append(twin)
        twin.boot()
        return twin

    def revoke(self, device: Device) -> None:
        """From now on the gateway believes nothing of this device and its copies."""
        if self.gateway.up and not self.gateway.disk_full:
            self.gateway.revoke(device.agent)

    def rotate(self, device: Device) -> None:
        """A new key generation: enrolled again, the device restarts with it."""
        if not self.gateway.up or self.gateway.disk_full or self.gateway.revoked(device.agent):
            return
        self._begin_generations(device.agent)
        self.gateway.rotate(device.agent)
        generation = self.gateway.generation(device.agent)
        self.generations[device.agent] = generation
        for one in self.devices:
            if one.agent == device.agent:
                key = device_key(CRYPTO, MASTER, one.agent, generation)
                one.settings = dict(one.settings, key=key.hex(), generation=generation)
                if one.driver is not None:
                    one.die(500)

    def bad_line(self, device: Device, loss: float, repeat: float, reorder_ms: int) -> None:
        """Worse than TCP, for this device and for the gateway."""
        self.rough = self.rough or bool(loss or reorder_ms)
        for link in (device.link, self.gateway.link):
            link.loss, link.repeat, link.reorder_ms = loss, repeat, reorder_ms

    def shuffle(self, device: Device) -> None:
        """The broker delivers what it holds in another order, some of it twice."""
        self.rough = True
        self.broker.shuffle("gateway")
        self.broker.shuffle(device.agent.hex())

    def bit_rot(self, device: Device, which: int, where: int) -> None:
        """A byte of a journal segment changes, as worn flash does it."""
        segments = sorted(n for n in device.flash.files if n[:2] in ("0-", "1-", "2-"))
        if segments:
            name = segments[which % len(segments)]
            size = len(device.flash.files[name].data)
            if size:
                device.memory.rotten = True
                device.flash.flip(name, where % size, 1 << where % 8)

    def _begin_generations(self, agent: bytes) -> None:
        """What an operator who restored an old backup does about the keys given out since."""
        while self.gateway.generation(agent) < self.generations.get(agent, 1):
            self.gateway.rotate(agent)

    def replay_down(self, device: Device, which: int) -> None:
        """Somebody who heard them plays an old message to the device again."""
        sent = [m for m in self.gateway.sent if m[0].startswith(f"{ROOT}/{device.agent.hex()}/")]
        if sent:
            device.message(*sent[which % len(sent)])

    def replay_up(self, which: int) -> None:
        """And an old frame to the gateway."""
        heard = [m for m in self.broker.heard if m[0].endswith("/up")]
        if heard:
            self.rough = True
            self.broker.publish(*heard[which % len(heard)])

    def feedback(self, device: Device, which: int, result: int, label: int) -> None:
        frames = list(device.memory.content.values())
        if frames:
            device.feedback(outcome_id(frames[which % len(frames)]), result, label)


__all__ = (
    "ALARM",
    "DAY_MS",
    "LABELS",
    "LEVEL",
    "REST",
    "TRACE",
    "WALK",
    "Device",
    "Violation",
    "World",
)
