"""MQTT 3.1.1 on Linux: paho's protocol machine on asyncio's event loop, no thread.

Theory of operation. paho asks for its socket to be watched through callbacks; they are
mapped to `loop.add_reader` and `add_writer`, and a task calls `loop_misc` once a second
for the keepalive. The socket is opened here, with asyncio: name lookup in the loop's
resolver thread, TCP and TLS handshake without blocking, each within `connect_timeout_s`.
paho takes the ready socket (`_create_socket` is overridden, a test guards that hook).

Each connection gets a client object of its own, so that nothing that was under way on the
last one is sent again behind the back of the delivery machine; the session that persists is
the broker's, by client id. A publish ends when its PUBACK has come or the connection has
gone. An incoming message is acknowledged to the broker when the next one is asked for,
which the driver does after it has acted on it: a message whose effects were not yet
stored when the power failed comes again.
"""

import asyncio
import errno
import hashlib
import hmac
import socket
import ssl
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from edge_agent.config import Broker, Tls
from edge_agent.errors import ConfigError, LinkError
from edge_agent.interfaces import Link

# CONNACK return codes of MQTT 3.1.1 as paho's names -> LinkError reason. 4 and 5 are about
# who we are, 1 and 2 about what we said; both need a person.
_CONNACK = {1: "refused", 2: "refused", 3: "broker", 4: "refused", 5: "refused"}
_RECEIVE_MAX = 64  # messages not yet taken; brokers keep their own window below that


class _Client(paho.Client):
    """paho's client on a socket that is already open."""

    ready_socket: Any = None

    def _create_socket(self) -> Any:
        sock, self.ready_socket = self.ready_socket, None
        if sock is None:
            raise LinkError("network", "no socket")
        return sock


class MqttLink(Link):
    """One MQTT session to one broker.

    subscriptions: topics. will: (topic, payload), QoS 1, retained.
    max_inflight: publishes waiting for their PUBACK; more of them wait here.
    LinkError reasons: "network" (name, route, timeout of TCP), "broker" (port closed,
    connection dropped, "unavailable"), "refused" (password, certificate, access rule),
    "timeout" (no CONNACK, no answer to a ping).
    """

    def __init__(
        self,
        broker: Broker,
        client_id: str,
        username: str,
        password: str,
        subscriptions: list[str],
        will: tuple[str, bytes] | None = None,
        max_inflight: int = 20,
    ) -> None:
        self._broker = broker
        self._client_id = client_id
        self._username = username
        self._password = password
        self._subscriptions = subscriptions
        self._will = will
        self._max_inflight = max_inflight
        self._ssl = _ssl_context(broker.tls) if broker.tls is not None else None
        self._client: _Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._misc: asyncio.Task[None] | None = None
        self._room = asyncio.Semaphore(max_inflight)
        self._connack: asyncio.Future[bool] | None = None
        self._suback: asyncio.Future[None] | None = None
        self._pubacks: dict[int, asyncio.Future[None]] = {}
        self._early: set[int] = set()
        self._inbox: asyncio.Queue[tuple[str, bytes, int, int] | LinkError] = asyncio.Queue()
        self._taken: tuple[int, int] | None = None
        self._closing = False
        self._opening: asyncio.Task[bool] | None = None

    def __repr__(self) -> str:
        return f"MqttLink({self._broker!r}, client {self._client_id})"

    # -- Link ------------------------------------------------------------------------

    async def connect(self) -> bool:
        """Open the session and subscribe; True when the broker still had it."""
        await self._drop()
        self._closing = False
        self._opening = asyncio.ensure_future(self._open())
        try:
            return await self._opening
        except asyncio.CancelledError:
            if self._closing:
                raise LinkError("network", "closed while connecting")
            raise
        finally:
            self._opening = None

    async def publish(
        self, topic: str, payload: bytes | Callable[[], bytes], qos: int = 1, retain: bool = False
    ) -> None:
        async with self._room:
            client = self._client
            if client is None or self._loop is None:
                raise LinkError("network", "not connected")
            data = payload() if callable(payload) else payload
            info = client.publish(topic, data, qos, retain)
            if info.rc not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_QUEUE_SIZE):
                raise LinkError("broker", paho.error_string(info.rc))
            if qos == 0:
                return
            if info.mid in self._early:
                # The answer came while paho was still sending.
                self._early.discard(info.mid)
                return
            future: asyncio.Future[None] = self._loop.create_future()
            self._pubacks[info.mid] = future
            try:
                await future
            finally:
                self._pubacks.pop(info.mid, None)

    async def receive(self) -> tuple[str, bytes]:
        """The next message; the one before counts as dealt with and is acknowledged."""
        client = self._client
        if self._taken is not None and client is not None:
            client.ack(*self._taken)
        self._taken = None
        if client is None and self._inbox.empty():
            raise LinkError("network", "not connected")
        item = await self._inbox.get()
        if isinstance(item, LinkError):
            raise item
        topic, payload, mid, qos = item
        if qos:
            self._taken = (mid, qos)
        return topic, payload

    async def disconnect(self) -> None:
        self._closing = True
        if self._opening is not None:
            self._opening.cancel()
        client = self._client
        if client is None:
            return
        if self._taken is not None:
            client.ack(*self._taken)
            self._taken = None
        client.disconnect()
        # The packet leaves with the next write; a broker that reads nothing gets no more time.
        for _ in range(20):
            if not client.want_write():
                break
            await asyncio.sleep(0.01)
        self._lost(LinkError("network", "closed"))
        await self._drop()

    # -- connecting ---------------------------------------------------------------------

    async def _open(self) -> bool:
        timeout = self._broker.connect_timeout_s
        loop = self._loop = asyncio.get_running_loop()
        try:
            sock = await asyncio.wait_for(self._open_socket(loop), timeout)
        except TimeoutError:
            raise LinkError("network", f"no connection to {self._where()} in {timeout} s")
        except OSError as error:
            raise self._why(error)
        self._inbox = asyncio.Queue()
        self._connack = loop.create_future()
        self._suback = loop.create_future()
        client = self._client = self._new_client(sock)
        try:
            client.connect(self._broker.host, self._broker.port, self._broker.keepalive_s)
            self._misc = loop.create_task(self._keep_alive(client))
            present = await asyncio.wait_for(self._connack, timeout)
            if self._subscriptions:
                client.subscribe([(topic, 1) for topic in self._subscriptions])
                await asyncio.wait_for(self._suback, timeout)
        except TimeoutError:
            await self._drop()
            raise LinkError("timeout", f"{self._where()} accepts connections but does not answer")
        except (LinkError, asyncio.CancelledError):
            await self._drop()
            raise
        except OSError as error:
            await self._drop()
            raise self._why(error)
        return present

    async def _open_socket(self, loop: asyncio.AbstractEventLoop) -> Any:
        broker = self._broker
        error: OSError | None = None
        infos = await loop.getaddrinfo(broker.host, broker.port, type=socket.SOCK_STREAM)
        for family, kind, proto, _, address in infos:
            sock = socket.socket(family, kind, proto)
            try:
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return await self._secure(loop, sock) if self._ssl is not None else sock
            except OSError as failed:
                sock.close()
                error = failed
            except BaseException:
                sock.close()
                raise
        raise error if error is not None else OSError("no address")

    async def _secure(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> ssl.SSLSocket:
        """TLS on a connected socket, without blocking the loop."""
        tls = self._broker.tls
        if self._ssl is None or tls is None:
            raise LinkError("refused", "no TLS settings")
        name = tls.server_name or self._broker.host
        secure = self._ssl.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
        try:
            while True:
                try:
                    secure.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await _readable(loop, secure)
                except ssl.SSLWantWriteError:
                    await _writable(loop, secure)
            if tls.fingerprint:
                seen = hashlib.sha256(secure.getpeercert(True) or b"").digest()
                if not hmac.compare_digest(seen, tls.fingerprint):
                    raise LinkError("refused", f"certificate {seen.hex()} is not the pinned one")
        except BaseException:
            secure.close()
            raise
        return secure

    def _new_client(self, sock: Any) -> _Client:
        client = _Client(
            CallbackAPIVersion.VERSION2,
            self._client_id,
            clean_session=False,
            protocol=paho.MQTTv311,
            manual_ack=True,
        )
        client.ready_socket = sock
        client.max_inflight_messages_set(self._max_inflight)
        if self._username:
            client.username_pw_set(self._username, self._password)
        if self._will is not None:
            client.will_set(self._will[0], self._will[1], 1, True)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_register_write
        client.on_socket_unregister_write = self._on_unregister_write
        return client

    async def _keep_alive(self, client: _Client) -> None:
        while True:
            await asyncio.sleep(1)
            if client.loop_misc() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._lost(LinkError("timeout", f"{self._where()} does not answer"))
                return

    async def _drop(self) -> None:
        """Forget the connection, whatever state it is in."""
        if self._misc is not None:
            self._misc.cancel()
            self._misc = None
        client, self._client = self._client, None
        self._taken = None
        if client is not None:
            sock = client.socket()
            if sock is not None:
                self._unwatch(sock)
                sock.close()
        self._fail(LinkError("network", "the connection was dropped"))

    # -- paho's callbacks, all in the loop's own thread -----------------------------------

    def _on_connect(self, client: Any, data: Any, flags: Any, code: Any, props: Any) -> None:
        if client is not self._client or self._connack is None or self._connack.done():
            return
        if code.is_failure:
            # paho gives MQTT 5 codes; the CONNACK itself had 1..5.
            number = _v311(code)
            reason = _CONNACK.get(number, "broker")
            self._connack.set_exception(LinkError(reason, f"{self._where()}: {code}"))
        else:
            self._connack.set_result(bool(flags.session_present))

    def _on_subscribe(self, client: Any, data: Any, mid: int, codes: Any, props: Any) -> None:
        if client is not self._client or self._suback is None or self._suback.done():
            return
        refused = [str(c) for c in codes if c.is_failure]
        if refused:
            detail = f"{self._where()} refuses a subscription of {self._client_id}"
            self._suback.set_exception(LinkError("refused", detail))
        else:
            self._suback.set_result(None)

    def _on_publish(self, client: Any, data: Any, mid: int, code: Any, props: Any) -> None:
        if client is not self._client:
            return
        future = self._pubacks.get(mid)
        if future is None:
            self._early.add(mid)
        elif not future.done():
            future.set_result(None)

    def _on_message(self, client: Any, data: Any, message: Any) -> None:
        if client is not self._client:
            return
        if self._inbox.qsize() >= _RECEIVE_MAX:
            # Not acknowledged, so the broker still has it; it comes with the next session.
            return
        self._inbox.put_nowait((message.topic, message.payload, message.mid, message.qos))

    def _on_disconnect(self, client: Any, data: Any, flags: Any, code: Any, props: Any) -> None:
        if client is self._client and not self._closing:
            self._lost(LinkError("broker", f"{self._where()}: {code}"))

    def _on_socket_open(self, client: Any, data: Any, sock: Any) -> None:
        if self._loop is not None:
            self._loop.add_reader(sock, self._on_readable, client)

    def _on_socket_close(self, client: Any, data: Any, sock: Any) -> None:
        self._unwatch(sock)

    def _on_register_write(self, client: Any, data: Any, sock: Any) -> None:
        if self._loop is not None and sock.fileno() >= 0:
            self._loop.add_writer(sock, self._on_writable, client)

    def _on_unregister_write(self, client: Any, data: Any, sock: Any) -> None:
        if self._loop is not None and sock.fileno() >= 0:
            self._loop.remove_writer(sock)

    def _on_readable(self, client: _Client) -> None:
        client.loop_read()
        sock = client.socket()
        # TLS may hold whole packets that the kernel no longer announces.
        while isinstance(sock, ssl.SSLSocket) and sock.pending():
            client.loop_read()
            sock = client.socket()

    def _on_writable(self, client: _Client) -> None:
        client.loop_write()

    def _unwatch(self, sock: Any) -> None:
        if self._loop is not None and sock.fileno() >= 0:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)

    # -- ends -----------------------------------------------------------------------------

    def _lost(self, error: LinkError) -> None:
        """The session is over: everyone who waits is told."""
        self._fail(error)
        self._inbox.put_nowait(error)

    def _fail(self, error: LinkError) -> None:
        for future in (self._connack, self._suback, *self._pubacks.values()):
            if future is not None and not future.done():
                future.set_exception(error)
                # Nobody may be waiting: then it is no unhandled error either.
                future.exception()
        self._pubacks = {}
        self._early = set()

    def _where(self) -> str:
        return f"{self._broker.host}:{self._broker.port}"

    def _why(self, error: OSError) -> LinkError:
        if isinstance(error, ssl.SSLError):
            return LinkError("refused", f"TLS with {self._where()}: {error}")
        if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE):
            return LinkError("broker", f"{self._where()}: {error.strerror}")
        return LinkError("network", f"{self._where()}: {error.strerror or error}")


def _v311(code: Any) -> int:
    """The CONNACK return code behind paho's MQTT 5 reason code."""
    return {132: 1, 133: 2, 136: 3, 134: 4, 135: 5}.get(code.value, 3)


def _ssl_context(tls: Tls) -> ssl.SSLContext:
    """Trust exactly what the configuration names. ConfigError for files that will not do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if tls.ca:
            context.load_verify_locations(cafile=tls.ca)
        else:
            # Only the pinned certificate is accepted (see _secure): the chain and the
            # date, which a device without a clock cannot judge, do not matter.
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if tls.cert:
            context.load_cert_chain(tls.cert, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot be used ({error})", "broker.tls", "Name readable PEM files")
    return context


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    future: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, _done, future)
    try:
        await future
    finally:
        loop.remove_reader(sock)


async def _writable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    future: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, _done, future)
    try:
        await future
    finally:
        loop.remove_writer(sock)


def _done(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
