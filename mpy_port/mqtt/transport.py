"""Opens a connection to a broker: TCP, and TLS that trusts exactly one certificate.

`open_stream` gives a Stream with `read`, `write` and `close`, on asyncio of CPython or of
MicroPython; what differs between the two is here and in secure.py. All it waits for has a time
limit, except the name lookup on MicroPython, whose `getaddrinfo` blocks (an address in
numbers avoids that).

Pinning. With `tls.fingerprint` the broker must prove that it holds the private key of the
one certificate with that SHA-256; who signed it and until when it is valid do not matter,
so a device without a clock can connect. On MicroPython the check is made inside the
handshake, by `verify_callback` (MicroPython 1.24 or newer with mbedtls); nothing is sent
before it has passed. With `tls.ca` alone the chain, the name and the date are checked,
and that takes a clock that is right.
"""

import asyncio
import errno
import hashlib
import sys

from edge_agent.errors import LinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edge_agent.config import Broker

_MICROPYTHON = sys.implementation.name == "micropython"
_READ_BYTES = 256
_POLL_MS = 5
_TCP, _NODELAY = 6, 1  # MicroPython does not name them everywhere

# errno -> the broker's machine answers, but not the broker.
_BROKER_ERRORS = (errno.ECONNREFUSED, errno.ECONNRESET, 32)  # 32: EPIPE


class Stream:
    """A connection. `read` gives b"" at its end; errors are LinkErrors."""

    def __init__(self, reader: "Any", writer: "Any", where: str) -> None:
        self._reader = reader
        self._writer = writer
        self._where = where

    async def read(self) -> bytes:
        try:
            data: bytes = await self._reader.read(_READ_BYTES)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise why(error, self._where)
        return data

    async def write(self, data: bytes) -> None:
        """Returns when all of it was handed to the system."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except (OSError, ValueError) as error:
            raise why(error, self._where)

    def close(self) -> None:
        """At once; what was not sent yet may be lost."""
        try:
            if _MICROPYTHON:
                self._writer.s.close()
            else:
                self._writer.transport.abort()
        except OSError:
            pass


def why(error: Exception, where: str) -> LinkError:
    """The LinkError for what a socket raised."""
    code = error.args[0] if error.args else 0
    number = code if isinstance(code, int) else 0
    # mbedtls reports its own errors as negative numbers, the ssl module as SSLError.
    # What a chain lacks comes as a ValueError there.
    if number < -255 or isinstance(error, ValueError) or "SSL" in type(error).__name__:
        return LinkError("refused", "TLS with %s: %s" % (where, error))
    if number in _BROKER_ERRORS or isinstance(error, ConnectionError if not _MICROPYTHON else ()):
        return LinkError("broker", "%s: %s" % (where, error))
    return LinkError("network", "%s: %s" % (where, error))


async def open_stream(broker: "Broker", now: "Any") -> Stream:
    """Connect within broker.connect_timeout_s. now: callable, ms. LinkError, ConfigError."""
    where = "%s:%d" % (broker.host, broker.port)
    if _MICROPYTHON:
        return await _open_micropython(broker, where, now)
    return await _open_host(broker, where)


# -- CPython ------------------------------------------------------------------------------


async def _open_host(broker: "Broker", where: str) -> Stream:
    timeout = broker.connect_timeout_s
    context = None
    if broker.tls is not None:
        from mpy_port.mqtt.secure import host_context

        context = host_context(broker.tls)
    name = (broker.tls.server_name or broker.host) if broker.tls is not None else None
    try:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(broker.host, broker.port, ssl=context, server_hostname=name),
            timeout,
        )
    except TimeoutError:
        raise LinkError("network", "no connection to %s in %d s" % (where, timeout))
    except (OSError, ValueError) as error:
        raise why(error, where)
    if broker.tls is not None and broker.tls.fingerprint:
        from mpy_port.mqtt.secure import not_pinned

        tunnel: Any = writer.get_extra_info("ssl_object")
        seen = hashlib.sha256(tunnel.getpeercert(True) or b"").digest()
        if seen != broker.tls.fingerprint:
            writer.transport.abort()
            raise not_pinned(where)
    return Stream(reader, writer, where)


# -- MicroPython --------------------------------------------------------------------------


async def _open_micropython(broker: "Broker", where: str, now: "Any") -> Stream:
    import socket

    give_up = now() + 1000 * broker.connect_timeout_s
    late = LinkError("network", "no connection to %s in %d s" % (where, broker.connect_timeout_s))
    # Before the connection: a file that is missing is no trouble of the network.
    pin = context = None
    if broker.tls is not None:
        from mpy_port.mqtt.secure import board_context

        context, pin = board_context(broker.tls)
    sock: Any = None
    try:
        info = socket.getaddrinfo(broker.host, broker.port, 0, socket.SOCK_STREAM)
        if not info:
            raise LinkError("network", "%s: no address" % where)
        sock = socket.socket(info[0][0], info[0][1], info[0][2])
        sock.setblocking(False)
        try:
            sock.connect(info[0][-1])
        except OSError as error:
            if error.errno not in (errno.EINPROGRESS, errno.EAGAIN):
                raise
        await _writable(sock, give_up, now, late)
        try:
            # Small packets must not wait for the answers to those before.
            sock.setsockopt(_TCP, _NODELAY, 1)
        except (OSError, ValueError, TypeError):
            pass
        if context is not None and broker.tls is not None:
            from mpy_port.mqtt.secure import handshake

            sock = await handshake(sock, context, pin, broker, give_up, now, late)
        stream: Any = asyncio.StreamReader(sock)
    except BaseException as error:
        if sock is not None:
            sock.close()
        if pin is not None and pin.failed:
            from mpy_port.mqtt.secure import not_pinned

            raise not_pinned(where)
        if isinstance(error, (OSError, ValueError)):
            raise why(error, where)
        raise
    return Stream(stream, stream, where)


async def _writable(sock: "Any", give_up: int, now: "Any", late: LinkError) -> None:
    import select

    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    while True:
        for found in poller.poll(0):
            if found[1] & (select.POLLERR | select.POLLHUP):
                sock.read(1)  # raises what went wrong
                raise OSError(errno.ECONNREFUSED)
            return
        if now() >= give_up:
            raise late
        await asyncio.sleep(_POLL_MS / 1000)
