"""One device: a simulated flash, the real journal, the real agent, a synchronous driver.

`Driver` is edge_agent.agent.Agent with its three asynchronous effects (connect, publish,
disconnect) turned into events of virtual time; every other effect is performed by the
agent's own code. The driver looks over its shoulder for the ledger: what was appended,
what a sync returned, what leaves, what is freed.
"""

from array import array
from collections.abc import Callable
from random import Random
from typing import Any
from unittest import mock

from sim_flash import SimFlash

from edge_agent import interfaces
from edge_agent.agent import Agent
from edge_agent.config import Config
from edge_agent.cpython.signer import HostCrypto
from edge_agent.effects import Append, Connect, Disconnect, Event, Free, Publish, Quarantine, Sync
from edge_agent.errors import StoreError
from edge_agent.interfaces import ModelOutput, Window
from edge_agent.journal import Ref
from edge_agent.journal_state import State
from edge_agent.segment import HEADER_BYTES, walk
from wire.board import Clock, Dark, Mains, Model, Seeded
from wire.ledger import Ledger, Memory
from wire.link import Link
from wire.session import Session

CRYPTO = HostCrypto()
EMBEDDING = 64
EVENTS_KEPT = 400


class Driver(Agent):
    """The agent, driven by hand."""

    def __init__(self, device: "Device", board: Any, config: Config, domain: Any) -> None:
        self.device = device
        super().__init__(board, config, domain, on_event=device.note)

    def _one(self, effect: Any) -> tuple[bool, Any]:
        device = self.device
        kind = type(effect)
        if kind is Publish:
            device.session.publish(self, effect)
            return False, None
        if kind is Connect:
            device.session.connect(self)
            return False, None
        if kind is Disconnect:
            device.session.disconnect(effect.reason)
            return False, None
        if kind is Append:
            device.ledger.make((device.agent, effect.journal, effect.seq), effect.frame)
        elif kind is Free:
            for first, last in effect.ranges:
                for seq in range(first, last + 1):
                    device.ledger.free(device.memory, (device.agent, effect.journal, seq))
        try:
            answer = super()._one(effect)
        except StoreError:
            if kind is Sync:
                # Some of the batch may be durable all the same: each write was synced.
                device.take_stock(self)
            raise
        if kind is Append:
            device.appended(effect)
        elif kind is Sync:
            device.after_sync(answer[1])
        elif kind is Quarantine:
            ref = effect.ref
            device.memory.refused[device.agent, ref.journal, ref.seq] = effect.reason
        return answer


class Device:
    """A machine with a flash. `memory` says what the flash should hold."""

    def __init__(
        self,
        name: str,
        world: Any,
        agent: bytes,
        settings: dict[str, Any],
        flash: SimFlash,
        memory: Memory,
    ) -> None:
        self.name = name
        self.world = world
        self.time = world.time
        self.ledger: Ledger = world.ledger
        self.agent = agent
        self.settings = settings
        self.flash = flash
        self.memory = memory
        self.rng = Random(world.rng.random())
        self.link = Link(world.time, world.rng)
        self.entropy = Seeded(self.rng)
        self.clock_says: Callable[[], int] = lambda: 0
        self.driver: Driver | None = None
        self.session = Session(self)
        self.events: list[tuple[int, Event]] = []
        self.boots = 0
        self.cuts = 0
        self.model = Model(len(world.domain.labels))
        self._batch: dict[tuple[bytes, int], bytes] = {}
        self._spins = 0
        self.heard: list[tuple[str, bytes]] = []  # every message that came down

    def __repr__(self) -> str:
        return "Device(%s)" % self.name

    # -- power ----------------------------------------------------------------------

    def boot(self) -> None:
        """Switch it on. May be cut again while the journal starts."""
        if self.driver is not None:
            return
        board = interfaces.Board(
            Clock(self.time, self.time.now, lambda: self.clock_says()),
            self.entropy,
            CRYPTO,
            Mains(self.flash),
            interfaces.Link(),
            self.model,
            interfaces.Sensor(),
        )
        config = Config.from_json(self.settings)

        def start() -> None:
            drop = self._watched(State.drop)
            with mock.patch.object(State, "drop", drop):
                driver = Driver(self, board, config, self.world.domain)
            state = driver.journal._s
            state.drop = lambda *values: drop(state, *values)
            self.take_stock(driver)
            self._batch = {}
            self.boots += 1
            self.driver = driver
            driver._perform(driver.core.start(0))

        self.guard(start)

    def _watched(self, drop: Callable[..., None]) -> Callable[..., None]:
        """State.drop that tells our memory what it was called for."""

        def watched(state: Any, reason: int, count: int, first: int = 0, last: int = 0) -> None:
            if count > 0:
                self.memory.drops.append((reason, count, first, last))
            drop(state, reason, count, first, last)

        return watched

    def take_stock(self, driver: Driver) -> None:
        """What the journal shows after start-up is on the flash, sync returned or not."""
        for ref, frame in held(driver.journal):
            identity = (self.agent, ref.journal, ref.seq)
            if identity not in self.memory.content:
                if frame not in self._batch.values():
                    self.ledger.fail("a frame from nowhere: %r", identity)
                self.ledger.commit(self.memory, identity, frame)
            elif self.memory.content[identity] != frame:
                self.ledger.fail("the journal changed %r", identity)

    def guard(self, what: Callable[[], Any]) -> None:
        try:
            what()
        except Dark:
            self.cuts += 1
            self.die()

    def die(self, restart_ms: int | None = 2000) -> None:
        """The power is gone. Without restart_ms it stays off."""
        self.driver = None
        self.session.lost_power()
        self.flash = self.flash.power_cycle()
        if restart_ms is not None:
            self.time.after(restart_ms, self.boot)

    def cut_power_at(self, writes: int) -> None:
        """The power fails during the write op that comes after this many others."""
        self.flash.cut_at = writes + 1

    # -- what the driver tells ------------------------------------------------------

    def note(self, event: Event) -> None:
        if len(self.events) < EVENTS_KEPT:
            self.events.append((self.time.now, event))
        if event.name in ("effect-failed", "task-failed"):
            self.ledger.fail("%s: %r", event.name, event.fields)

    def named(self, name: str) -> list[Event]:
        """The events of that name so far."""
        return [event for _, event in self.events if event.name == name]

    def appended(self, effect: Append) -> None:
        self._batch[effect.journal, effect.seq] = effect.frame

    def after_sync(self, refs: list[Any]) -> None:
        for ref in refs:
            frame = self._batch.pop((ref.journal, ref.seq))
            self.ledger.commit(self.memory, (self.agent, ref.journal, ref.seq), frame)

    # -- messages --------------------------------------------------------------------

    def message(self, topic: str, payload: bytes) -> None:
        """Hand a message to the agent, whoever sent it."""
        driver = self.driver
        if driver is not None:
            now = driver._now()
            self.guard(lambda: driver._perform(driver.core.on_message(topic, payload, now)))

    # -- time -----------------------------------------------------------------------

    def wake(self) -> int | None:
        """When the agent wants to be asked next, in virtual time."""
        driver = self.driver
        if driver is None:
            return None
        wake = driver.core.next_wake()
        if wake is None:
            return None
        started = self.time.now - driver._now()
        return max(started + wake, self.time.now + (1 if self._spins else 0))

    def tick(self) -> None:
        driver = self.driver
        if driver is None:
            return
        before = driver.core.ids.last
        self.guard(driver._tick)
        if self.driver is not driver:
            return
        wake = driver.core.next_wake()
        # A wake in the past that leads to nothing keeps a processor busy for ever.
        if wake is not None and wake <= driver._now() and driver.core.ids.last == before:
            self._spins += 1
            if self._spins > 500:
                self.ledger.fail("%s spins: %r", self.name, driver.core.status())
        else:
            self._spins = 0

    # -- what people do -------------------------------------------------------------

    def observe(self, label: int, confidence: int = 200) -> None:
        """A window whose meaning the model sees as `label`."""
        driver = self.driver
        if driver is None:
            return
        scores = bytearray(len(self.world.domain.labels))
        scores[label] = confidence
        self.model.next = ModelOutput(bytes(scores), self.rng.randbytes(EMBEDDING), 0)
        samples = array("h", [self.rng.randrange(-999, 999) for _ in range(4)])

        def see() -> None:
            now = driver._now()
            driver.core.on_clock(driver.board.clock.utc_s(), now)
            driver._perform(driver.core.on_window(Window(samples, (), ""), now))

        self.guard(see)

    def save(self) -> None:
        """What a graceful stop does first."""
        driver = self.driver
        if driver is not None:
            self.guard(driver.journal.save)

    def feedback(self, outcome_id: bytes, result: int, label: int) -> None:
        driver = self.driver
        if driver is not None:
            self.guard(lambda: driver.feedback(outcome_id, result, label))

    # -- looking --------------------------------------------------------------------

    def served(self, frame: bytes) -> bool:
        """Whether the gateway would believe this frame of ours.

        It does not when the device was revoked, or when the frame's key generation was
        retired: by hand, or because one copy of a flash reported that it holds nothing
        under it, while another does. Both are final.
        """
        gateway = self.world.gateway
        if gateway.revoked(self.agent):
            return False
        may = self.copied() or self.agent in gateway.given_up
        return not (may and gateway.retired(self.agent, frame[16]))

    def copied(self) -> bool:
        """Whether two flashes with a common past have existed for this agent."""
        return self.agent in self.world.copied

    def ambiguous(self) -> bool:
        """Whether this agent gave out a number twice, under one journal id or two."""
        return self.copied() or self.agent in self.world.wiped

    def greets_for(self, journal: bytes) -> bool:
        """Whether the gateway still hears hellos for this journal id."""
        if self.driver is None or self.world.gateway.revoked(self.agent):
            return False
        return journal in [h[0] for h in self.driver.journal.held()]

    def quiet(self) -> bool:
        """Nothing left to bring to the gateway, or only what it will never take."""
        driver = self.driver
        if driver is None:
            return False
        if driver.core.drained() and not any(driver.journal.stats()["pending"]):
            return True
        core = driver.core
        if core.intake.busy():
            return False
        return not any(self.served(frame) for frame in self._stock().values())

    def waits(self, identity: tuple[bytes, bytes, int], frame: bytes) -> bool:
        return self._stock().get(identity) == frame

    def quarantined(self, identity: tuple[bytes, bytes, int], frame: bytes) -> bool:
        driver = self.driver
        if driver is None or identity not in self.memory.refused:
            return False
        for ref, reason in driver.journal.quarantined(1 << 20):
            if (self.agent, ref.journal, ref.seq) == identity:
                return driver.journal.read(ref) == frame and reason == self.memory.refused[identity]
        return 7 in self.drops()

    def drops(self) -> dict[int, int]:
        return self.driver.journal.drops if self.driver is not None else {}

    def told(self) -> list[tuple[int, int]]:
        """Ranges of numbers that the journal called dropped; a hello has room for eight."""
        return [(first, last) for _, _, first, last in self.memory.drops]

    def _stock(self) -> dict[tuple[bytes, bytes, int], bytes]:
        if self.driver is None:
            return {}
        return {
            (self.agent, ref.journal, ref.seq): frame for ref, frame in held(self.driver.journal)
        }

    def status(self) -> dict[str, Any]:
        driver = self.driver
        if driver is None:
            return {"off": True}
        return dict(driver.core.status(), journal_stats=driver.journal.stats())

    def batch(self) -> dict[tuple[bytes, int], bytes]:
        return dict(self._batch)

    def forget_batch(self, batch: "dict[tuple[bytes, int], bytes] | None" = None) -> None:
        """The flash was replaced: what was being written is that of the other one."""
        self._batch = dict(batch or {})


def held(journal: Any) -> list[tuple[Any, bytes]]:
    """Every durable record that is not freed, and its frame; changes nothing."""
    out = []
    for priority in range(3):
        for segment in journal._s.chains[priority]:
            if not segment.pending:
                continue
            for r in walk(journal._store, segment, HEADER_BYTES, segment.length):
                if r is not None and not segment.is_freed(r.seq):
                    ref = Ref(segment.journal, r.seq, priority, segment.number, r.offset, r.length)
                    out.append((ref, journal.read(ref)))
    return out
