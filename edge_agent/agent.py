"""The driver: performs the effects of AgentCore with the adapters of a board.

Runs on CPython and MicroPython; of asyncio it uses run, sleep, Event, wait_for and
create_task only. Every effect is performed in the order given. Effects on the journal and
the model are ordinary calls and block the loop for as long as flash or model take;
publishes run as tasks, as many at a time as the window allows.

Nothing an adapter raises ends the agent: EdgeErrors go back to the core, which counts
and decides; anything else is reported as an error event and treated as a failure of that
one effect.
"""

import asyncio

from edge_agent import cbor, frame
from edge_agent.connection import IDLE
from edge_agent.core import AgentCore
from edge_agent.effects import (
    Append,
    Committed,
    Connect,
    Disconnect,
    Event,
    Fetch,
    Free,
    Handle,
    Infer,
    JournalFacts,
    Keep,
    Mint,
    Persist,
    Publish,
    Quarantine,
    SetTime,
    Survey,
    Sync,
)
from edge_agent.egress import Egress
from edge_agent.errors import (
    CborError,
    ConfigError,
    EdgeError,
    LinkError,
    LocalError,
    SensorError,
    StoreError,
)
from edge_agent.journal import Journal
from edge_agent.twoslot import TwoSlot
from edge_agent.version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Awaitable, Callable

    from edge_agent.config import Config
    from edge_agent.domain import Domain
    from edge_agent.interfaces import Board, Model

SETTINGS = "settings"
MAIL, MAIL_MAX = "mail", 16384
SENSOR_RETRY_S = (1, 60)
STOP_S = 10


def facts_of(journal: Journal) -> JournalFacts:
    """What a journal holds, as the machines want to know it."""
    stats: Any = journal.stats()
    return JournalFacts(
        journal.journal_id,
        journal.boot,
        journal.next_seq,
        journal.held(),
        sum(stats["pending"]),
        journal.drops,
        journal.gone(),
        journal.oldest_generation(),
        journal.down_counter,
        journal.cfg_version,
        journal.age_base_s,
        journal.doubt,
    )


class Agent:
    """One agent on one board.

    on_committed(window_key, seq, frame): called for each record once its sync returned.
    on_event(event): called with every effects.Event; for logs and screens.
    handlers: {box type: callable(body)}.
    The journal is opened here. Raises ConfigError, StoreError, JournalError.
    """

    def __init__(
        self,
        board: "Board",
        config: "Config",
        domain: "Domain",
        on_committed: "Callable[[str, int, bytes], None] | None" = None,
        on_event: "Callable[[Event], None] | None" = None,
        handlers: "dict[int, Callable[[bytes], None]] | None" = None,
    ) -> None:
        if config.domain_id and config.domain_id != domain.id:
            raise ConfigError(
                "the domain file is %s, enrolled for %s"
                % (domain.id.hex(), config.domain_id.hex()),
                "domain",
                "Use the file that the gateway gave out at enrolment",
            )
        self.board = board
        self.config = config
        self.handlers = handlers if handlers is not None else {}
        self._on_committed = on_committed
        self._on_event = on_event
        self.journal = self._open_journal()
        self._settings = TwoSlot(board.store, SETTINGS)
        self._restore_settings()
        # A fresh end of the nonces each boot: see frame.DeviceKeys.
        salt = board.entropy.bytes(4) if config.encrypt else b"\x00\x00\x00\x00"
        keys = frame.DeviceKeys(board.crypto, config.agent, config.key, config.generation, salt)
        self.egress = Egress(board.store, keys)
        self._mail: TwoSlot | None = None
        if config.peers is not None:
            self._mail = TwoSlot(board.store, MAIL, MAIL_MAX)
        self.core = AgentCore(
            config,
            domain,
            keys,
            facts_of(self.journal),
            board.entropy.bytes,
            board.model.model_id,
            __version__[:16],
            ledger=on_committed is not None,
            kept=None if self._mail is None else self._mail.load(),
        )
        self._todo: list[Any] = []
        self._performing = False
        self._wake: asyncio.Event | None = None
        self._tasks: list[Any] = []
        self._outgoing: list[Publish] = []
        self._more = asyncio.Event()  # something is in _outgoing
        self._idle = 0  # publishers that wait for it
        self._session: Any = None
        self._closing = ""  # why we are closing the session ourselves
        self._stopping = False
        self._sensor_done = False
        self._final: dict[str, Any] | None = None  # the status when the journal was closed

    # -- for callers -------------------------------------------------------------------

    async def run(self, drain: bool = False) -> None:
        """Run until `stop` is called; with drain also until all is in custody."""
        self._wake = asyncio.Event()
        self._perform(self.core.start(self._now()))
        sensing = self._spawn(self._sense())
        while not self._stopping:
            if drain and self._sensor_done and self.core.drained():
                break
            await self._pause(self.core.next_wake())
            self._tick()
        await self._shut_down(sensing)

    def stop(self) -> None:
        """Ask `run` to come to an end: sync, say goodbye, close."""
        self._stopping = True
        self._ring()

    def feedback(
        self, outcome_id: bytes, result: "int | str", label: "int | str", key: str = ""
    ) -> None:
        """How an outcome turned out; names or numbers of the domain. ValueError.

        key: handed to on_committed when the feedback is durable.
        """
        domain = self.core.domain
        if isinstance(result, str):
            result = domain.results.index(result)
        if isinstance(label, str):
            label = domain.labels.index(label)
        now = self._now()
        self.core.on_clock(self.board.clock.utc_s(), now)
        self._perform(self.core.feedback(outcome_id, result, label, now, key))

    def use_model(self, model: "Model") -> None:
        """Conclude with another model, from the next window on.

        It must suit the domain as the first one did: the board's own check says whether.
        """
        self.board.model = model
        self.core.use_model(model.model_id)

    def status(self) -> "dict[str, Any]":
        """The core's status, the journal's statistics and the egress account.

        After `run` has ended: as they were at the end.
        """
        if self._final is not None:
            return self._final
        out = self.core.status()
        out["journal_stats"] = self.journal.stats(self._now() // 1000)
        out["egress"] = {kind: list(self.egress.totals[kind]) for kind in self.egress.totals}
        return out

    def report(self, level: str, name: str, fields: "dict[str, Any]") -> None:
        """Hand an event of the board or of this driver to `on_event`."""
        if self._on_event is not None:
            self._on_event(Event(0, level, name, fields))

    # -- start and end -------------------------------------------------------------------

    def _open_journal(self) -> Journal:
        return Journal.open(
            self.board.store,
            self.board.entropy,
            segment_bytes=self.config.segment_bytes,
            max_segments=self.config.max_segments,
            reserve=self.config.reserve,
            policy=(self.config.policy,) * 3,
            woken=self.board.woken,
        )

    def _restore_settings(self) -> None:
        """Settings of the last cfg message; unreadable ones are left out, not fatal."""
        data = self._settings.load()
        if data is None:
            return
        try:
            content: Any = cbor.decode(data)
            self.config.apply(content[1])
            self.journal.cfg_version = content[0]
        except (CborError, ConfigError, TypeError, ValueError):
            # Another version of the agent wrote them: go on with those of the file.
            self.journal.cfg_version = 0

    async def _shut_down(self, sensing: "Any") -> None:
        self._stopping = True
        self._cancel(sensing)
        self._perform(self.core.stop(self._now()))
        give_up = self._now() + 1000 * STOP_S
        while self.core.delivery.link.state != IDLE and self._now() < give_up:
            wake = self.core.next_wake()
            await self._pause(give_up if wake is None else min(wake, give_up))
            self._tick()
        try:
            await self.board.link.disconnect()
        except EdgeError:
            pass
        for task in list(self._tasks):
            self._cancel(task)
        try:
            await self.board.sensor.close()
        except EdgeError:
            pass
        self._save_egress()
        self._final = self.status()
        self.journal.close()

    def _cancel(self, task: "Any") -> None:
        if task is not None:
            task.cancel()

    # -- time ------------------------------------------------------------------------------

    def _now(self) -> int:
        return self.board.clock.uptime_ms()

    def _ring(self) -> None:
        if self._wake is not None:
            self._wake.set()

    async def _pause(self, wake: "int | None") -> None:
        """Sleep until `wake` (uptime ms) or until something happened."""
        event = self._wake
        if event is None:
            return
        if wake is None:
            await event.wait()
        else:
            delay = wake - self._now()
            if delay > 0:
                try:
                    await asyncio.wait_for(event.wait(), delay / 1000)
                except asyncio.TimeoutError:  # noqa: UP041 - another class on MicroPython
                    pass
            else:
                await asyncio.sleep(0)
        event.clear()

    def _tick(self) -> None:
        now = self._now()
        wake = self.core.next_wake()
        if wake is not None and wake <= now:
            self._perform(self.core.on_tick(now))
        if self.egress.due(now):
            self._save_egress()

    # -- tasks -----------------------------------------------------------------------------

    def _spawn(self, work: "Any") -> "Any":
        me: list[Any] = []
        task = asyncio.create_task(self._guard(work, me))
        me.append(task)
        self._tasks.append(task)
        return task

    async def _guard(self, work: "Awaitable[None]", me: "list[Any]") -> None:
        """Run a task to its end and forget it; an unexpected error is shown, not lost."""
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self.report("error", "task-failed", {"error": repr(error)})
        finally:
            self._tasks = [task for task in self._tasks if task is not me[0]]

    async def _sense(self) -> None:
        """Feed windows to the core until the source ends."""
        pause, longest = SENSOR_RETRY_S
        while not self._stopping:
            try:
                window = await self.board.sensor.read()
            except (SensorError, OSError) as error:
                self._perform(self.core.on_sensor_error(error, self._now()))
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
                continue
            pause = SENSOR_RETRY_S[0]
            now = self._now()
            if window is None:
                self._sensor_done = True
                self._perform(self.core.on_sensor_end(now))
                return
            self.core.on_clock(self.board.clock.utc_s(), now)
            self._perform(self.core.on_window(window, now))
            await asyncio.sleep(0)

    async def _run_session(self) -> None:
        """One connection, from connect to its end."""
        link = self.board.link
        reason = "network"
        try:
            present = await link.connect()
            self._perform(self.core.on_link(True, present, "", self._now()))
            while True:
                topic, payload = await link.receive()
                self._perform(self.core.on_message(topic, payload, self._now()))
        except LinkError as error:
            reason = error.reason
            if not self._closing:
                self.report("debug", "link-error", {"error": str(error)})
        except (OSError, EdgeError) as error:
            self.report("error", "link-error", {"error": repr(error)})
        finally:
            self._session = None
            reason, self._closing = self._closing or reason, ""
            self._perform(self.core.on_link(False, False, reason, self._now()))

    async def _end_session(self, reason: str) -> None:
        self._closing = reason
        session = self._session
        try:
            await self.board.link.disconnect()
        except EdgeError:
            pass
        if session is not None and self._session is session:
            # `receive` or `connect` ends by itself; a link that hangs is cut off.
            await asyncio.sleep(1)
            if self._session is session:
                session.cancel()

    async def _publisher(self) -> None:
        """Publish what is asked for, one after the other, for ever.

        A task for each publish would be simpler, but MicroPython's scheduler keeps finished
        tasks alive through stale links between them: 600 bytes for each record of a backlog.
        """
        while True:
            while self._outgoing:
                await self._publish(self._outgoing.pop(0))
                # One that failed at once is asked for again at once: others have their turn.
                await asyncio.sleep(0)
            self._more.clear()
            self._idle += 1
            try:
                await self._more.wait()
            finally:
                self._idle -= 1

    async def _publish(self, effect: Publish) -> None:
        try:
            payload = effect.payload
            if payload is None:
                payload = self._reader(effect.ref)
            else:
                self.egress.check(payload)
            await self.board.link.publish(effect.topic, payload, effect.qos, effect.retain)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not isinstance(error, (EdgeError, OSError)):
                self.report("error", "effect-failed", {"in": "Publish", "error": repr(error)})
            self._perform(self.core.on_error(effect.id, error, self._now()))
        else:
            self._perform(self.core.on_done(effect.id, None, self._now()))

    def _reader(self, ref: "Any") -> "Callable[[], bytes]":
        """Reads a record anew for each time it is sent, so that RAM holds no copy."""

        def payload() -> bytes:
            data = self.journal.read(ref)
            self.egress.check(data)
            return data

        return payload

    # -- effects -----------------------------------------------------------------------------

    def _perform(self, effects: "list[Any]") -> None:
        """Perform effects and those that follow from them, in order."""
        self._todo.extend(effects)
        if self._performing:
            return
        self._performing = True
        try:
            while self._todo:
                effect = self._todo.pop(0)
                answers = True
                try:
                    answers, result = self._one(effect)
                except Exception as error:
                    if not isinstance(error, EdgeError):
                        name = type(effect).__name__
                        self.report("error", "effect-failed", {"in": name, "error": repr(error)})
                    follow = self.core.on_error(effect.id, error, self._now())
                else:
                    if not answers:
                        continue
                    follow = self.core.on_done(effect.id, result, self._now())
                # What follows from an effect comes before what was asked for later.
                self._todo[0:0] = follow
        finally:
            self._performing = False
        self._ring()

    def _one(self, effect: "Any") -> "tuple[bool, Any]":
        """(whether an answer is due at once, the answer)."""
        journal = self.journal
        kind = type(effect)
        if kind is Infer:
            return True, self.board.model.run(effect.features)
        if kind is Append:
            ref = journal.append(
                effect.seq,
                effect.frame,
                effect.priority,
                effect.ttl_s,
                self._now() // 1000,
                effect.generation,
                effect.journal,
            )
            return True, ref
        if kind is Sync:
            return True, journal.sync(self._now() // 1000)
        if kind is Survey:
            if effect.save:
                journal.save()
            return True, facts_of(journal)
        if kind is Fetch:
            uptime_s = self._now() // 1000
            return True, journal.scan(effect.priority, effect.after, effect.limit, uptime_s)
        if kind is Free:
            return True, journal.free(effect.journal, effect.ranges)
        if kind is Quarantine:
            journal.quarantine(effect.ref, effect.reason)
            return True, None
        if kind is Mint:
            journal.mint()
            return True, facts_of(journal)
        if kind is Persist:
            self._persist(effect)
            return True, None
        if kind is Keep and self._mail is not None:
            self._mail.save(effect.data)
            return True, None
        if kind is Publish:
            self._outgoing.append(effect)
            if self._idle < len(self._outgoing):
                self._spawn(self._publisher())
            self._more.set()
        elif kind is Connect:
            self._session = self._spawn(self._run_session())
        elif kind is Disconnect:
            self._spawn(self._end_session(effect.reason))
        elif kind is SetTime:
            set_utc = getattr(self.board.clock, "set_utc_ms", None)
            if set_utc is not None:
                set_utc(effect.utc_ms)
        elif kind is Committed:
            if self._on_committed is not None:
                for key, seq, data in effect.records:
                    self._on_committed(key, seq, data)
        elif kind is Handle:
            self._handle(effect)
        elif kind is Event and self._on_event is not None:
            self._on_event(effect)
        return False, None

    def _persist(self, effect: Persist) -> None:
        if effect.settings is not None:
            self._settings.save(cbor.encode([effect.version, effect.settings]))
            self.journal.cfg_version = effect.version
        self.journal.down_counter = effect.counter
        if not effect.lazy:
            self.journal.save()

    def _handle(self, effect: Handle) -> None:
        handler = self.handlers.get(effect.type)
        if handler is None:
            self.report("warning", "box-unknown", {"type": effect.type})
            return
        try:
            handler(effect.body)
        except (EdgeError, ValueError) as error:
            self.report("error", "box-failed", {"type": effect.type, "error": str(error)})

    def _save_egress(self) -> None:
        try:
            self.egress.save(self._now())
        except (StoreError, LocalError) as error:
            self.report("warning", "egress-not-saved", {"error": str(error)})
