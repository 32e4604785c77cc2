"""Gateways as their peers see them: identities, certificates, an origin on loopback."""

import asyncio
import contextlib
import datetime
import os
import ssl
import time
from collections import Counter
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from edge_agent.cpython.signer import HostCrypto
from gateway.ask import Asker
from gateway.peers import Desk
from gateway.serve import Listener, peer_app, server_context

CRYPTO = HostCrypto()


@dataclass
class Card:
    """What others know of a gateway."""

    gateway: bytes
    public: bytes
    certificate: str
    endpoint: str = ""
    rules: dict = field(default_factory=dict)
    revoked_ms: int | None = None


@dataclass
class Member:
    """A gateway with its keys."""

    gateway: bytes
    seed: bytes
    key_pem: bytes
    card: Card

    def write(self, folder):
        (folder / f"{self.gateway.hex()}.key").write_bytes(self.key_pem)
        (folder / f"{self.gateway.hex()}.crt").write_text(self.card.certificate)
        return server_context(
            folder / f"{self.gateway.hex()}.crt", folder / f"{self.gateway.hex()}.key"
        )


def member(number):
    """Gateway 0101.., 0202.., with a fresh key and a self-signed certificate."""
    seed = os.urandom(32)
    key = Ed25519PrivateKey.from_private_bytes(seed)
    gateway = bytes([number]) * 8
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, gateway.hex())])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .sign(key, None)
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    text = certificate.public_bytes(serialization.Encoding.PEM).decode()
    return Member(gateway, seed, pem, Card(gateway, CRYPTO.public_key(seed), text))


class Origin:
    """One member's listener. `known` are the cards it allows; may be changed while it runs."""

    def __init__(self, me, folder, known, handlers, started_s=None, defaults=None, app=None):
        self.me = me
        self.known = {card.gateway: card for card in known}
        self.rows = []
        started = int(time.time()) if started_s is None else started_s
        self.desk = Desk(CRYPTO, me.gateway, self.known.get, started, defaults)
        if app is None:
            app = peer_app(me, self.desk, handlers, lambda *row: self.rows.append(row))
        self.listener = Listener(app, "127.0.0.1", 0, me.write(folder))
        me.card.endpoint = f"127.0.0.1:{self.listener.port}"

    async def __aenter__(self):
        await self.listener.start()
        return self

    async def __aexit__(self, *_):
        await self.listener.stop()


@contextlib.asynccontextmanager
async def asking(me, now_s=time.time):
    asker = Asker(me, now_s)
    try:
        yield asker
    finally:
        await asker.close()


@contextlib.asynccontextmanager
async def strange_server(context, behaviour):
    """A TLS server that does whatever `behaviour(reader, writer)` does."""
    seen = Counter()

    async def serve(reader, writer):
        seen["connections"] += 1
        with contextlib.suppress(ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            await behaviour(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", seen
    finally:
        server.close()
