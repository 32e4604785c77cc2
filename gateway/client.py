"""paho's client, reading and writing in large pieces.

paho reads a packet with three system calls and one call of Python for each field, and
writes each PUBACK with a system call of its own: about half of what a frame costs here.
This class keeps paho for everything that is rare (connecting, TLS, subscribing,
keep-alive) and does two things itself: it splits what one `recv` brought into packets and
hands over QoS 0 and 1 PUBLISH packets directly, and it collects what is to be sent until
`loop_write`. All other packets are given to paho byte for byte.

It relies on two internal methods of paho 2, `_sock_recv` and `_sock_send`; a test fails
when a new version of paho no longer calls them.
"""

from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode

PIECE = 65536
_PUBLISH, _DISCONNECT = 0x30, 0xE0
_PUBACK = 0x40
_MAX_PACKET = 1 << 20
# Packet ids of our publishes. paho counts its own, for subscribing, from 1.
_OWN_IDS = 0x1000

# Called with topic (bytes as sent), payload and packet id (0 for QoS 0).
Sink = Callable[[bytes, bytes, int], None]


class BatchClient(paho.Client):
    """`take` reads; `ack`, `publish` and the rest write when `loop_write` is called."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in = b""
        self._at = 0
        self._fed = b""
        self._ended = False
        self._out: list[bytes] = []
        self._mid = _OWN_IDS
        # With this callback paho leaves the time of writing to us.
        self.on_socket_register_write = lambda *_: None

    # -- reading --------------------------------------------------------------------

    def buffered(self) -> bool:
        """Whether bytes wait that no `select` will tell of."""
        return self._at < len(self._in)

    def take(self, sink: Sink, wanted: Callable[[], bool]) -> MQTTErrorCode:
        """Read until the socket is empty or `wanted()` is false."""
        while True:
            while wanted():
                size = self._next_packet()
                if size <= 0:
                    break
                code = self._packet(size, sink)
                if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
                    return code
            else:
                return MQTTErrorCode.MQTT_ERR_SUCCESS
            if size < 0:
                self._ended = True  # not MQTT: let paho end the connection
                return self.loop_read()
            try:
                more = super()._sock_recv(PIECE)
            except BlockingIOError:
                return MQTTErrorCode.MQTT_ERR_SUCCESS
            except OSError:
                more = b""
            if not more:
                self._ended = True
                return self.loop_read()
            self._in = self._in[self._at :] + more
            self._at = 0

    def _next_packet(self) -> int:
        """Bytes of the next packet, 0 when it is not complete, -1 when there is none."""
        data, at = self._in, self._at
        size = shift = 0
        for step in range(1, 5):
            if at + step >= len(data):
                return 0
            byte = data[at + step]
            size |= (byte & 127) << shift
            if byte < 128:
                size += step + 1
                if size > _MAX_PACKET:
                    return -1
                return size if at + size <= len(data) else 0
            shift += 7
        return -1

    def _packet(self, size: int, sink: Sink) -> MQTTErrorCode:
        data, at = self._in, self._at
        end = self._at = at + size
        first = data[at]
        qos = first >> 1 & 3
        if first & 0xF0 == _PUBLISH and qos < 2:
            head = at + 2
            while data[head - 1] & 128:
                head += 1
            topic = head + 2 + (data[head] << 8 | data[head + 1]) if head + 2 <= end else end + 1
            body = topic + 2 if qos else topic
            if body <= end:
                mid = data[topic] << 8 | data[topic + 1] if qos else 0
                sink(data[head + 2 : topic], data[body:end], mid)
                return MQTTErrorCode.MQTT_ERR_SUCCESS
        if first == _PUBACK and size == 4 and data[at + 2] >= _OWN_IDS >> 8:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        self._fed = data[at:end]
        return self.loop_read()

    def _sock_recv(self, bufsize: int) -> bytes:
        if self._fed:
            piece, self._fed = self._fed[:bufsize], self._fed[bufsize:]
            return piece
        if self._ended:
            return b""
        raise BlockingIOError

    # -- writing --------------------------------------------------------------------

    def ack(self, mid: int, qos: int) -> MQTTErrorCode:
        """PUBACK a message that `take` handed over; goes out with the next `loop_write`."""
        if qos == 1:
            self._out.append(b"\x40\x02" + mid.to_bytes(2, "big"))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def want_write(self) -> bool:
        return bool(self._out) or super().want_write()

    def publish(  # type: ignore[override]
        self, topic: str, payload: bytes, qos: int = 1, retain: bool = False
    ) -> None:
        """Send once. The broker's PUBACK is not waited for and nothing is sent again on
        this connection: a device that misses an acknowledgement asks for it."""
        name = topic.encode()
        body = len(name).to_bytes(2, "big") + name
        if qos:
            self._mid = self._mid + 1 if self._mid < 0xFFFF else _OWN_IDS
            body += self._mid.to_bytes(2, "big")
        size = len(body) + len(payload)
        head = bytes((_PUBLISH | (2 if qos else 0) | (1 if retain else 0),))
        while size > 127:
            head += bytes((size & 127 | 128,))
            size >>= 7
        self._out.append(head + bytes((size,)) + body + payload)

    def loop_write(self) -> MQTTErrorCode:
        code = super().loop_write()
        self._flush()
        return code

    def _sock_send(self, buf: "bytes | bytearray") -> int:
        self._out.append(bytes(buf))
        if buf[0] & 0xF0 == _DISCONNECT:
            self._flush()  # paho closes the socket next
        return len(buf)

    def _flush(self) -> None:
        while self._out:
            data = b"".join(self._out)
            try:
                sent = super()._sock_send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._out = []  # reading will find the connection gone
                return
            self._out = [data[sent:]] if sent < len(data) else []
            if not sent:
                return
