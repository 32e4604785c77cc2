"""The Link of MicroPython boards: a Session on an asyncio stream. Also runs on CPython.

Theory of operation. Three tasks serve a connection: one reads, one writes what the session
has to say, one keeps its deadlines. Whatever ends the connection ends up in `_lose`, once;
everyone who waits is told there. Nothing waits for the broker without a deadline: opening
has its own, CONNACK, SUBACK, PINGRESP and PUBACK have the session's, and a writer that a
full socket holds up is freed when the PINGRESP stays out.

At most `window` publishes are in flight and as many are queued behind them; callers beyond
that wait here, in order. With `resend=False`, as the agent wants it, a publish ends with
its connection: the delivery machine decides what is sent again, and reads it from the
journal anew. With `resend=True` publishes wait for the next `connect` and are sent again
by the session, marked DUP when the broker still knows them.

An incoming message is acknowledged when the next one is asked for: one whose effects were
not stored when the power failed comes again.
"""

import asyncio

from edge_agent.errors import LinkError
from edge_agent.interfaces import Link
from mpy_port.mqtt.session import CLOSED, Connected, Failed, Lost, Message, Published, Session
from mpy_port.mqtt.transport import open_stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from edge_agent.config import Broker
    from edge_agent.interfaces import Clock
    from mpy_port.mqtt.session import Slot
    from mpy_port.mqtt.transport import Stream

_INBOX = 32  # messages not yet taken; brokers keep their own window of about 20
_TICK_MS = 1000  # longest nap of the task that keeps deadlines
_GOODBYE_MS = 200


class MqttLink(Link):
    """One MQTT session to one broker.

    broker: config.Broker.  clock: its uptime_ms.  subscriptions: topic filters.
    will: (topic, payload), QoS 1, retained.  window: QoS 1 publishes in flight.
    puback_ms: for one PUBACK.  max_packet: longest incoming packet, bytes; longer messages
    are acknowledged, left out, and counted in `session.oversize`.
    LinkError reasons: "network" (name, route, no TCP connection in time), "broker" (port
    closed, connection dropped, not MQTT), "refused" (password, certificate, access rule),
    "timeout" (no answer).
    """

    def __init__(
        self,
        broker: "Broker",
        client_id: str,
        username: str,
        password: str,
        subscriptions: "list[str]",
        clock: "Clock",
        will: "tuple[str, bytes] | None" = None,
        window: int = 8,
        puback_ms: int = 20000,
        max_packet: int = 4096,
        resend: bool = False,
    ) -> None:
        self._broker = broker
        self._where = "%s:%d" % (broker.host, broker.port)
        self._now = clock.uptime_ms
        self._resend = resend
        self.session = Session(
            {
                "client_id": client_id,
                "username": username,
                "password": password,
                "will": will,
            },
            subscriptions,
            keepalive_s=broker.keepalive_s,
            window=window,
            answer_ms=1000 * broker.connect_timeout_s,
            puback_ms=puback_ms,
            max_packet=max_packet,
        )
        self._stream: Stream | None = None
        self._opening: Any = None
        self._tasks: list[Any] = []
        self._closing = False
        self._writing = False
        self._error: LinkError | None = None  # why the last connection ended
        self._present = False
        self._inbox: list[Message] = []
        self._left = 0  # messages that did not fit there
        self._taken: Message | None = None
        self._turn = asyncio.Lock()  # publishers queue here, in order
        self._room = asyncio.Event()
        self._output = asyncio.Event()
        self._up = asyncio.Event()  # opened, or failed to
        self._news = asyncio.Event()  # a message, or the end

    def __repr__(self) -> str:
        return "MqttLink(%s, %r)" % (self._where, self.session)

    # -- Link -----------------------------------------------------------------------------

    async def connect(self) -> bool:
        """Open the session and subscribe; True when the broker still had it."""
        self._lose(LinkError("network", "connecting anew"))
        self._closing = False
        self._writing = False
        self._error = None
        self._inbox = []
        self._left = 0
        self._taken = None
        self._up.clear()
        self._news.clear()
        self._opening = asyncio.create_task(self._dial())
        try:
            self._stream = stream = await self._opening
        except asyncio.CancelledError:
            if self._closing:
                raise LinkError("network", "closed while connecting")
            raise
        finally:
            self._opening = None
        self.session.open(self._now())
        for work in (self._read(stream), self._write(stream), self._keep_time(stream)):
            self._tasks.append(asyncio.create_task(self._guard(work, stream)))
        try:
            await self._up.wait()
        except asyncio.CancelledError:
            self._lose(LinkError("network", "cancelled"))
            raise
        if self._error is not None:
            raise self._gone()
        return self._present

    async def publish(
        self,
        topic: str,
        payload: "bytes | Callable[[], bytes]",
        qos: int = 1,
        retain: bool = False,
    ) -> None:
        async with self._turn:
            while not self.session.room and self._usable():
                self._room.clear()
                await self._room.wait()
            if not self._usable():
                # A caller that tries again at once must not keep the loop from connecting.
                await asyncio.sleep(0)
                raise self._gone()
            slot = self.session.publish(topic, payload, qos, retain)
        waiter = _Waiter()
        slot.owner = waiter
        self._output.set()
        try:
            await waiter.event.wait()
        except asyncio.CancelledError:
            self.session.forget(slot)
            raise
        if waiter.error is not None:
            raise waiter.error

    async def receive(self) -> "tuple[str, bytes]":
        """The next message; the one before counts as dealt with and is acknowledged."""
        self._acknowledge()
        while not self._inbox:
            if self._stream is None:
                raise self._gone()
            if self._left:
                # A broker gives them again to a new connection only, and what it has on its
                # way to us, unacknowledged, keeps the place of what comes after.
                await self._said()
                if not self._inbox and self._left:
                    self._lose(LinkError("network", "%d messages did not fit" % self._left))
                continue
            self._news.clear()
            await self._news.wait()
        message = self._inbox.pop(0)
        self._taken = message
        return message.topic, message.payload

    async def disconnect(self) -> None:
        self._closing = True
        if self._opening is not None:
            self._opening.cancel()
        stream = self._stream
        if stream is not None:
            self._acknowledge()
            self.session.goodbye()
            self._output.set()
            # The packet leaves with the next write; a broker that reads nothing gets no more.
            await self._said()
        self._lose(LinkError("network", "closed"), True)

    async def _said(self) -> None:
        """Wait a moment until all that the session had to say is written."""
        stream = self._stream
        for _ in range(_GOODBYE_MS // 10):
            await asyncio.sleep(0.01)
            if self._stream is not stream:
                break
            if not self._writing and not self.session.talkative:
                break

    async def _dial(self) -> "Stream":
        """A fresh connection to the broker. LinkError, ConfigError."""
        return await open_stream(self._broker, self._now)

    # -- the tasks of a connection ----------------------------------------------------------

    async def _guard(self, work: "Any", stream: "Stream") -> None:
        try:
            await work
        except LinkError as error:
            if self._stream is stream:
                self._lose(error)
        except Exception as error:
            # Memory, or a fault of ours: a connection without its tasks would only look alive.
            if self._stream is stream:
                self._lose(LinkError("network", "%s: %r" % (self._where, error)))

    async def _read(self, stream: "Stream") -> None:
        while self._stream is stream:
            data = await stream.read()
            if not data:
                raise LinkError("broker", "%s closed the connection" % self._where)
            self.session.received(data, self._now())
            self._deal()

    async def _write(self, stream: "Stream") -> None:
        while self._stream is stream:
            data = self.session.output(self._now())
            if data:
                self._writing = True
                await stream.write(data)
                self._writing = False
                self._deal()
                continue
            self._deal()
            # What `_deal` woke may have more to say.
            if not self.session.talkative:
                self._output.clear()
                await self._output.wait()

    async def _keep_time(self, stream: "Stream") -> None:
        while self._stream is stream:
            self.session.tick(self._now())
            self._deal()
            due = self.session.deadline()
            nap = _TICK_MS if due is None else max(1, min(_TICK_MS, due - self._now()))
            await asyncio.sleep(nap / 1000)

    # -- events -----------------------------------------------------------------------------

    def _deal(self) -> None:
        """Act on what the session has to say."""
        while True:
            event = self.session.next_event()
            if event is None:
                break
            kind = type(event)
            if kind is Published:
                self._finish(event.slot, None)
            elif kind is Message:
                if len(self._inbox) < _INBOX:
                    self._inbox.append(event)
                    self._news.set()
                else:
                    self._left += 1  # not acknowledged, so the broker still has it
            elif kind is Failed:
                self._finish(event.slot, event.error or self._gone())
            elif kind is Connected:
                self._present = event.session_present
                self._up.set()
            elif kind is Lost:
                self._lose(LinkError(event.reason, "%s: %s" % (self._where, event.detail)))
        if self.session.talkative:
            self._output.set()

    def _finish(self, slot: "Slot", error: "Exception | None") -> None:
        waiter = slot.owner
        if waiter is not None:
            waiter.error = error
            waiter.event.set()
        self._room.set()

    def _acknowledge(self) -> None:
        message, self._taken = self._taken, None
        if message is not None:
            self.session.taken(message)
            self._output.set()

    # -- the end ----------------------------------------------------------------------------

    def _usable(self) -> bool:
        return self._stream is not None or (self._resend and not self._closing)

    def _gone(self) -> LinkError:
        # A new one for each who waits: on MicroPython an exception grows by a traceback
        # each time it is raised.
        error = self._error
        if error is None:
            return LinkError("network", "not connected")
        return LinkError(error.reason, error.detail)

    def _lose(self, error: LinkError, forget: bool = False) -> None:
        """The connection is over: stop its tasks and tell everyone who waits.

        forget: also end publishes that could have waited for the next connection.
        """
        stream, self._stream = self._stream, None
        if self._closing:
            # The broker answers DISCONNECT by closing: that is no trouble.
            error = LinkError("network", "closed")
        keep = self._resend and not forget
        if stream is not None:
            self._error = error
            tasks, self._tasks = self._tasks, []
            for task in tasks:
                # The one that runs this ends by itself; MicroPython cannot cancel it.
                if task is not asyncio.current_task():
                    task.cancel()
            stream.close()
        if self.session.state != CLOSED or (self.session.pending and not keep):
            self.session.closed(keep, error.reason, error.detail)
            self._deal()
        self._room.set()
        self._up.set()
        self._news.set()


class _Waiter:
    """What a publish waits for."""

    __slots__ = ("error", "event")

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.error: Exception | None = None
