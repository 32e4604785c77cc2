"""TLS for the MQTT client: which broker to trust, on CPython and MicroPython.

A certificate that is pinned is compared inside the handshake, by its SHA-256, and needs no
correct clock. Imported only when the configuration asks for TLS.
"""

import asyncio
import hashlib
from binascii import a2b_base64

from edge_agent.errors import ConfigError, LinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edge_agent.config import Broker, Tls

_POLL_MS = 5


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


def host_context(tls: "Tls") -> "Any":
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


def not_pinned(where: str) -> LinkError:
    return LinkError("refused", "the certificate of %s is not the pinned one" % where)


class Pin:
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


def board_context(tls: "Tls") -> "tuple[Any, Pin | None]":
    import tls as library

    context: Any = library.SSLContext(library.PROTOCOL_TLS_CLIENT)
    pin = None
    try:
        if tls.ca:
            with open(tls.ca, "rb") as file:
                context.load_verify_locations(der(file.read()))
            context.verify_mode = library.CERT_REQUIRED
        if tls.fingerprint:
            pin = Pin(tls.fingerprint)
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


async def handshake(
    sock: "Any",
    context: "Any",
    pin: "Pin | None",
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
