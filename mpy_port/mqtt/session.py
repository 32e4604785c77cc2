"""One MQTT 3.1.1 session of a client, without I/O: bytes in, bytes and events out.

Theory of operation.

            open              CONNACK 0          SUBACK, all granted
    CLOSED ------> CONNECTING ----------> SUBSCRIBING -----------------> OPEN
       ^               |                       |                           |
       +---------------+-----------------------+---------------------------+
         lost: refusal, forbidden bytes, a deadline, `closed`, `goodbye`

The caller moves bytes: `received(data, now)` takes what came, `output(now)` gives what to
send next, a packet or a few at a time. `next_event()` says what happened. Time is an
argument, milliseconds that never step back; `deadline()` says when `tick(now)` must be
called at the latest.

Publishes. `publish` makes a Slot. At most `window` slots are in flight; the others wait in
order. A slot's payload may be a callable: it is asked when the packet is made, so what
waits for its PUBACK costs no copy in RAM, and is asked again for a resend. Packet ids only
tell slots in flight apart; they mean nothing beyond that.

A PUBACK that does not come in time ends the session: over TCP nothing is lost unless the
connection is, and the standard allows a resend on a new connection only (4.4).
`closed(keep=True)` keeps the slots, and the next connection sends them again, in order and
with their packet ids, marked DUP when the broker still has the session; with `keep=False`
every slot fails.

Incoming messages of QoS 1 are acknowledged by `taken`, after the caller has dealt with
them; one that was not comes again with the next session.
"""

from collections import namedtuple

from mpy_port.mqtt import packets
from mpy_port.mqtt.packets import (
    Connack,
    Decoder,
    PacketError,
    Pingresp,
    Puback,
    Publish,
    Suback,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

CLOSED, CONNECTING, SUBSCRIBING, OPEN = "closed", "connecting", "subscribing", "open"

# CONNACK codes 1..5 (3.2.2.3): 3 is the broker's trouble, the others need a person.
_REFUSALS = {
    1: ("refused", "protocol version refused"),
    2: ("refused", "client id refused"),
    3: ("broker", "server unavailable"),
    4: ("refused", "bad user name or password"),
    5: ("refused", "not authorised"),
}

OUTPUT_BYTES = 1400  # about a TCP segment: small packets leave together

Connected = namedtuple("Connected", ("session_present",))
Published = namedtuple("Published", ("slot",))  # acknowledged, or sent with QoS 0
Failed = namedtuple("Failed", ("slot", "error"))  # error: exception of the payload, or None
Message = namedtuple("Message", ("topic", "payload", "qos", "retain", "dup", "packet_id"))
Lost = namedtuple("Lost", ("reason", "detail"))  # reason: as of LinkError


class Slot:
    """One publish. payload: bytes, or a callable that gives them. owner: the caller's."""

    __slots__ = ("dup", "owner", "packet_id", "payload", "qos", "retain", "sent_ms", "topic")

    def __init__(
        self, topic: str, payload: "bytes | Callable[[], bytes]", qos: int, retain: bool
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.packet_id = 0
        self.sent_ms = -1  # not sent on this connection
        self.dup = False
        self.owner: Any = None


class Session:
    """The protocol of one client id at one broker; outlives connections.

    connect: keyword arguments of packets.encode_connect but keepalive_s. subscriptions:
    topic filters, QoS 1. window: QoS 1 publishes in flight.
    answer_ms: for CONNACK, SUBACK and PINGRESP. puback_ms: for a PUBACK.
    max_packet: longest incoming packet kept, bytes.

    Attributes: state; counters resent, stray (acknowledgements that fit nothing).
    """

    def __init__(
        self,
        connect: "dict[str, Any]",
        subscriptions: "list[str]",
        keepalive_s: int = 30,
        window: int = 8,
        answer_ms: int = 10000,
        puback_ms: int = 20000,
        max_packet: int = 4096,
    ) -> None:
        if window < 1:
            raise ValueError("window must be at least 1")
        self.state = CLOSED
        self.window = window
        self.resent = 0
        self.stray = 0
        self._hello = packets.encode_connect(keepalive_s=keepalive_s, **connect)
        self._subscriptions = subscriptions
        self._keepalive_ms = 1000 * keepalive_s
        self._answer_ms = answer_ms
        self._puback_ms = puback_ms
        self._decoder = Decoder(max_packet)
        self._max_packet = max_packet
        self._oversize = 0
        self._control: list[bytes] = []  # whole packets that go first
        self._flying: list[Slot] = []  # QoS 1, in the order of their first sending
        self._waiting: list[Slot] = []
        self._events: list[Any] = []
        self._next_id = 0
        self._present = False
        self._subscribe_id = 0
        self._answer_by = -1  # deadline of CONNACK, SUBACK or PINGRESP
        self._pinging = False
        self._heard_ms = 0
        self._said_ms = 0

    def __repr__(self) -> str:
        # Never the CONNECT packet: it holds the password.
        return "Session(%s, %d in flight, %d waiting)" % (
            self.state,
            len(self._flying),
            len(self._waiting),
        )

    @property
    def oversize(self) -> int:
        """Incoming messages that were too long to be taken; acknowledged and left out."""
        return self._oversize + self._decoder.oversize

    # -- the connection's life ------------------------------------------------------------

    def open(self, now: int) -> None:
        """A new connection is there: CONNECT goes out."""
        if self.state != CLOSED:
            raise ValueError("the session is open already")
        self.state = CONNECTING
        self._oversize += self._decoder.oversize
        self._decoder = Decoder(self._max_packet)
        self._control = [self._hello]
        self._events = [e for e in self._events if not isinstance(e, (Connected, Lost))]
        self._pinging = False
        self._heard_ms = self._said_ms = now
        self._answer_by = now + self._answer_ms

    def closed(self, keep: bool, reason: str = "broker", detail: str = "connection lost") -> None:
        """The connection has gone, or is to go. keep: the slots wait for the next one."""
        self._lose(reason, detail)
        for slot in self._flying:
            slot.sent_ms = -1
        if not keep:
            dropped, self._flying, self._waiting = self._flying + self._waiting, [], []
            for slot in dropped:
                self._events.append(Failed(slot, None))

    def goodbye(self) -> None:
        """DISCONNECT goes out after what is being sent; then close the connection."""
        if self.state in (SUBSCRIBING, OPEN):
            self._control.append(packets.DISCONNECT)

    def _lose(self, reason: str, detail: str) -> None:
        if self.state != CLOSED:
            self.state = CLOSED
            self._control = []
            self._answer_by = -1
            self._events.append(Lost(reason, detail))

    # -- publishing -----------------------------------------------------------------------

    @property
    def room(self) -> bool:
        """Whether another publish would not wait behind a full window's worth of others."""
        return len(self._waiting) < self.window

    @property
    def pending(self) -> int:
        """Publishes not yet acknowledged."""
        return len(self._flying) + len(self._waiting)

    @property
    def in_flight(self) -> int:
        return len(self._flying)

    def publish(
        self,
        topic: str,
        payload: "bytes | Callable[[], bytes]",
        qos: int = 1,
        retain: bool = False,
    ) -> Slot:
        """Queue a publish; Published or Failed will name the slot."""
        slot = Slot(topic, payload, qos, retain)
        self._waiting.append(slot)
        return slot

    def forget(self, slot: Slot) -> None:
        """Nobody waits for this publish any more. In flight, its id stays taken till PUBACK."""
        if slot in self._waiting:
            self._waiting.remove(slot)
        slot.owner = None

    def taken(self, message: Message) -> None:
        """The message has been dealt with: acknowledge it."""
        if message.qos and self.state in (SUBSCRIBING, OPEN):
            self._control.append(packets.encode_puback(message.packet_id))

    # -- time -----------------------------------------------------------------------------

    def deadline(self) -> "int | None":
        """When `tick` has something to do; None while closed."""
        if self.state == CLOSED:
            return None
        times = []
        if self._answer_by >= 0:
            times.append(self._answer_by)
        if self.state == OPEN:
            if self._keepalive_ms and not self._pinging:
                times.append(self._ping_at())
            # Sent in this order, so the first one sent is the first one due.
            for slot in self._flying:
                if slot.sent_ms >= 0:
                    times.append(slot.sent_ms + self._puback_ms)
                    break
        return min(times) if times else None

    def tick(self, now: int) -> None:
        if self.state == CLOSED:
            return
        if 0 <= self._answer_by <= now:
            what = {CONNECTING: "CONNECT", SUBSCRIBING: "SUBSCRIBE"}.get(self.state, "PINGREQ")
            self._lose("timeout", "no answer to %s" % what)
            return
        if self.state != OPEN:
            return
        for slot in self._flying:
            if 0 <= slot.sent_ms <= now - self._puback_ms:
                self._lose("timeout", "no PUBACK in %d ms" % self._puback_ms)
                return
        if self._keepalive_ms and not self._pinging and self._ping_at() <= now:
            self._pinging = True
            self._answer_by = now + self._answer_ms
            self._control.append(packets.PINGREQ)

    def _ping_at(self) -> int:
        # Silence either way is a reason to ask: a sender of QoS 0 hears nothing either.
        return min(self._said_ms, self._heard_ms) + self._keepalive_ms * 3 // 4

    # -- bytes out --------------------------------------------------------------------------

    def output(self, now: int) -> bytes:
        """What to send next, b"" when there is nothing."""
        out, self._control = self._control, []
        size = sum([len(packet) for packet in out])
        while self.state == OPEN and size < OUTPUT_BYTES:
            slot = self._next_slot()
            if slot is None:
                break
            try:
                packet = self._encode(slot)
            except Exception as error:
                # The payload is gone, or nothing that may be published.
                self._drop(slot)
                self._events.append(Failed(slot, error))
                continue
            slot.sent_ms = now
            if slot.qos == 0:
                self._drop(slot)
                self._events.append(Published(slot))
            out.append(packet)
            size += len(packet)
        if out:
            self._said_ms = now
        return out[0] if len(out) == 1 else b"".join(out)

    @property
    def talkative(self) -> bool:
        """Whether `output` has something to give."""
        if self._control:
            return True
        if self.state != OPEN:
            return False
        for slot in self._flying:
            if slot.sent_ms < 0:
                return True
        waiting = self._waiting
        return bool(waiting) and (not waiting[0].qos or len(self._flying) < self.window)

    def _next_slot(self) -> "Slot | None":
        """What comes first: resends, then what waits, if the window has room."""
        for slot in self._flying:
            if slot.sent_ms < 0:
                return slot
        if not self._waiting or (self._waiting[0].qos and len(self._flying) >= self.window):
            return None
        slot = self._waiting.pop(0)
        if slot.qos:
            slot.packet_id = self._new_id()
        self._flying.append(slot)
        return slot

    def _encode(self, slot: Slot) -> bytes:
        payload = slot.payload
        data = payload() if callable(payload) else payload
        if slot.dup:
            self.resent += 1
        return packets.encode_publish(
            slot.topic, data, slot.qos, slot.retain, slot.dup, slot.packet_id
        )

    def _drop(self, slot: Slot) -> None:
        if slot in self._flying:
            self._flying.remove(slot)

    def _new_id(self) -> int:
        used = [slot.packet_id for slot in self._flying]
        while True:
            self._next_id = self._next_id % 0xFFFF + 1
            if self._next_id not in used:
                return self._next_id

    # -- bytes in ---------------------------------------------------------------------------

    def received(self, data: bytes, now: int) -> None:
        """Take what came from the broker."""
        if self.state == CLOSED:
            return
        self._heard_ms = now
        self._decoder.feed(data)
        try:
            while self.state != CLOSED:
                packet = self._decoder.next()
                if packet is None:
                    return
                self._take(packet, now)
        except PacketError as error:
            self._lose("broker", "not MQTT: %s" % error)

    def next_event(self) -> "Any":
        """The next event in order, None when there is none."""
        return self._events.pop(0) if self._events else None

    def _take(self, packet: "Any", now: int) -> None:
        kind = type(packet)
        if kind is Connack:
            self._on_connack(packet, now)
        elif self.state == CONNECTING:
            raise PacketError("bad-type", "before CONNACK")  # 3.2
        elif kind is Publish:
            if self.state == SUBSCRIBING:
                # All that a broker held for us comes before its SUBACK: it is at work.
                self._answer_by = now + self._answer_ms
            self._on_publish(packet)
        elif kind is Puback:
            self._on_puback(packet)
        elif kind is Suback:
            self._on_suback(packet)
        elif kind is Pingresp:
            if self._pinging:
                self._pinging = False
                self._answer_by = -1
            else:
                self.stray += 1
        else:
            self.stray += 1

    def _on_connack(self, packet: Connack, now: int) -> None:
        if self.state != CONNECTING:
            raise PacketError("bad-type", "second CONNACK")
        if packet.code:
            reason, detail = _REFUSALS[packet.code]
            self._lose(reason, detail)
            return
        self._present = packet.session_present
        for slot in self._flying:
            # A broker that lost the session never saw them.
            slot.dup = packet.session_present
        self._answer_by = -1
        if not self._subscriptions:
            self._opened()
            return
        self.state = SUBSCRIBING
        self._answer_by = now + self._answer_ms
        self._subscribe_id = self._new_id()
        wanted = [(name, 1) for name in self._subscriptions]
        self._control.append(packets.encode_subscribe(self._subscribe_id, wanted))

    def _on_suback(self, packet: Suback) -> None:
        if self.state != SUBSCRIBING or packet.packet_id != self._subscribe_id:
            self.stray += 1
            return
        if len(packet.codes) != len(self._subscriptions):
            raise PacketError("bad-code", "SUBACK")
        for i in range(len(packet.codes)):
            if packet.codes[i] == packets.REFUSED:
                self._lose("refused", "subscription to %s refused" % self._subscriptions[i])
                return
        self._answer_by = -1
        self._opened()

    def _opened(self) -> None:
        self.state = OPEN
        self._events.append(Connected(self._present))

    def _on_publish(self, packet: Publish) -> None:
        message = Message(*packet)
        if packet.payload is None:
            self.taken(message)
        else:
            self._events.append(message)

    def _on_puback(self, packet: Puback) -> None:
        for slot in self._flying:
            if slot.packet_id == packet.packet_id and slot.sent_ms >= 0:
                self._flying.remove(slot)
                self._events.append(Published(slot))
                return
        self.stray += 1
