"""Opens a connection to a broker: TCP, and TLS that trusts exactly one certificate.

`open_stream` gives a Stream with `read`, `write` and `close`, on asyncio of CPython or of
MicroPython; all that differs between the two is here. Everything it waits for has a time
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
from binascii import a2b_base64

from edge_agent.errors import ConfigError, LinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edge_agent.config import Broker, Tls

_MICROPYTHON = sys.implementation.name == "micropython"
_READ_BYTES = 512
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


def der(data: bytes) -> bytes:
    """The first block of a PEM file, decoded; other bytes as they are.

    MicroPython builds read DER only.
    """
    lines = bytes(data).split(b"-----")
    if len(lines) < 3 or not lines[1].startswith(b"BEGIN"):
        return bytes(data)
    return a2b_base64(b"".join(lines[2].split()))


def fingerprint_of(certificate: bytes) -> bytes:
    """SHA-256 of a certificate, given as PEM or DER: what `tls.fingerprint` wants."""
    return hashlib.sha256(der(certificate)).digest()


async def open_stream(broker: "Broker", now: "Any") -> Stream:
    """Connect within broker.connect_timeout_s. now: callable, ms. LinkError, ConfigError."""
    where = "%s:%d" % (broker.host, broker.port)
    if _MICROPYTHON:
        return await _open_micropython(broker, where, now)
    return await _open_host(broker, where)


# -- CPython ------------------------------------------------------------------------------


async def _open_host(broker: "Broker", where: str) -> Stream:
    timeout = broker.connect_timeout_s
    context = None if broker.tls is None else _host_context(broker.tls)
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
        tunnel: Any = writer.get_extra_info("ssl_object")
        seen = hashlib.sha256(tunnel.getpeercert(True) or b"").digest()
        if seen != broker.tls.fingerprint:
            writer.transport.abort()
            raise _not_pinned(where)
    return Stream(reader, writer, where)


def _host_context(tls: "Tls") -> "Any":
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if tls.ca:
            context.load_verify_locations(cafile=tls.ca)
        else:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # the fingerprint is checked instead
        if tls.cert:
            context.load_cert_chain(tls.cert, tls.key)
    except OSError as error:
        raise _bad_files(error)
    return context


def _bad_files(error: Exception) -> ConfigError:
    return ConfigError("cannot be used (%s)" % error, "broker.tls", "Name readable PEM files")


def _not_pinned(where: str) -> LinkError:
    return LinkError("refused", "the certificate of %s is not the pinned one" % where)


# -- MicroPython --------------------------------------------------------------------------


class _Pin:
    """Called by mbedtls for each certificate of the chain; 0 lets the handshake go on."""

    def __init__(self, fingerprint: bytes) -> None:
        self.fingerprint = fingerprint
        self.passed = False
        self.failed = False

    def check(self, certificate: bytes, depth: int) -> int:
        # Only the broker's own certificate counts; those above it vouch for nothing here.
        if depth:
            return 0
        same = hashlib.sha256(certificate).digest() == self.fingerprint
        self.passed, self.failed = same, not same
        return 0 if same else 1


async def _open_micropython(broker: "Broker", where: str, now: "Any") -> Stream:
    import socket

    give_up = now() + 1000 * broker.connect_timeout_s
    late = LinkError("network", "no connection to %s in %d s" % (where, broker.connect_timeout_s))
    # Before the connection: a file that is missing is no trouble of the network.
    pin = context = None
    if broker.tls is not None:
        context, pin = _micropython_context(broker.tls)
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
            sock = await _handshake(sock, context, pin, broker, give_up, now, late)
        stream: Any = asyncio.StreamReader(sock)
    except BaseException as error:
        if sock is not None:
            sock.close()
        if pin is not None and pin.failed:
            raise _not_pinned(where)
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


def _micropython_context(tls: "Tls") -> "tuple[Any, _Pin | None]":
    import tls as library

    context: Any = library.SSLContext(library.PROTOCOL_TLS_CLIENT)
    pin = None
    try:
        if tls.ca:
            with open(tls.ca, "rb") as file:
                context.load_verify_locations(der(file.read()))
            context.verify_mode = library.CERT_REQUIRED
        if tls.fingerprint:
            pin = _Pin(tls.fingerprint)
            if not tls.ca:
                # Certificates are looked at, by the callback; chain and date are not held
                # against the broker.
                context.verify_mode = library.CERT_OPTIONAL
            context.verify_callback = pin.check
        if tls.cert:
            with open(tls.cert, "rb") as cert, open(tls.key, "rb") as key:
                context.load_cert_chain(der(cert.read()), der(key.read()))
    except AttributeError:
        raise ConfigError(
            "this firmware cannot pin a certificate",
            "broker.tls.fingerprint",
            "Use MicroPython 1.24 or newer with mbedtls, or name a ca",
        )
    except (OSError, ValueError) as error:
        raise _bad_files(error)
    return context, pin


async def _handshake(
    sock: "Any",
    context: "Any",
    pin: "_Pin | None",
    broker: "Broker",
    give_up: int,
    now: "Any",
    late: LinkError,
) -> "Any":
    name = broker.host
    if broker.tls is not None and broker.tls.server_name:
        name = broker.tls.server_name
    secure = context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
    secure.setblocking(False)
    # Reading drives the handshake. A broker says nothing before CONNECT, so there is nothing
    # to be read; the rest of the handshake is done by the first write.
    while pin is None or not pin.passed:
        if secure.read(1):
            raise LinkError("broker", "speaks before it was asked")
        if pin is None:
            break
        if now() >= give_up:
            raise late
        await asyncio.sleep(_POLL_MS / 1000)
    return secure
