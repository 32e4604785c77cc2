"""The asking side of gateway to gateway: HTTPS with one pinned certificate per peer.

A client trusts exactly the certificate that the peer's card brought, as its only
authority, and no host name: whoever answers under another key ends in the handshake.
TLS 1.3 or nothing. What comes back is read up to a limit and up to the caller's
deadline, then verified (peers.Asked.read); whatever is wrong is the peer's fault, has a
reason, and is counted. Nothing is retried here: a query has better things to do with the
time that is left.

Further reasons of PeerError from here: "unreachable", "wrong-certificate", "silent" (the
deadline passed), "http-NNN" (an unsigned refusal), "broken" (the connection ended).
"""

import asyncio
import os
import ssl
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import httpx

from edge_agent.cpython.signer import HostCrypto
from edge_agent.errors import RemoteError
from gateway.peers import ANSWER_MAX, Identity, PeerError, PeerLike, ask

PATH = "/qis/1/ask"
CLIENTS_MAX = 64


class Reachable(PeerLike, Protocol):
    """A peer that can be called."""

    @property
    def certificate(self) -> str: ...  # PEM
    @property
    def endpoint(self) -> str: ...  # "host:port"


def pinned(certificate: str) -> ssl.SSLContext:
    """A context in which this certificate (PEM) is the only one believed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=certificate)
    return context


class Asker:
    """Asks peers; keeps connections open. Call `close` at the end."""

    def __init__(self, identity: Identity, now_s: Callable[[], float] = time.time) -> None:
        self._identity = identity
        self._now_s = now_s
        self._crypto = HostCrypto()
        self._clients: dict[tuple[bytes, str, str], httpx.AsyncClient] = {}
        self.asked: Counter[str] = Counter()  # operation -> requests sent
        self.failed: Counter[str] = Counter()  # reason -> requests
        self.bytes_out = 0
        self.bytes_in = 0

    async def ask(
        self, peer: Reachable, op: str, body: Any, deadline_s: float, endpoint: str = ""
    ) -> Any:
        """The body of the peer's answer. PeerError, RemoteError for unreadable bytes.

        deadline_s: seconds from now.  endpoint: where to call, else the peer's own.
        """
        self.asked[op] += 1
        try:
            async with asyncio.timeout(max(0.001, deadline_s)):
                return await self._ask(peer, op, body, endpoint or peer.endpoint)
        except TimeoutError:
            error = PeerError("silent", f"{deadline_s:.1f} s")
        except RemoteError as found:
            error = PeerError(found.reason, found.detail)
        self.failed[error.reason] += 1
        raise error

    async def _ask(self, peer: Reachable, op: str, body: Any, endpoint: str) -> Any:
        now = int(self._now_s())
        asked = ask(self._crypto, self._identity, peer.gateway, op, body, now, os.urandom(16))
        client = await self._client(peer, endpoint)
        try:
            async with client.stream(
                "POST", f"https://{endpoint}{PATH}", content=asked.data
            ) as got:
                self.bytes_out += len(asked.data)
                data = bytearray()
                async for part in got.aiter_raw(65536):
                    data += part
                    if len(data) > ANSWER_MAX:
                        raise PeerError("too-long", "answer")
                self.bytes_in += len(data)
                if got.status_code != 200:
                    raise PeerError(f"http-{got.status_code}", _words(data))
        except httpx.ConnectError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise PeerError("wrong-certificate", endpoint)
            raise PeerError("unreachable", f"{endpoint}: {error}")
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as error:
            raise PeerError("broken", f"{endpoint}: {type(error).__name__}")
        return asked.read(self._crypto, peer.public, bytes(data), int(self._now_s()))

    async def _client(self, peer: Reachable, endpoint: str) -> httpx.AsyncClient:
        key = (peer.gateway, peer.certificate, endpoint)
        client = self._clients.get(key)
        if client is None:
            while len(self._clients) >= CLIENTS_MAX:
                await self._clients.pop(next(iter(self._clients))).aclose()
            client = httpx.AsyncClient(
                verify=pinned(peer.certificate),
                timeout=60.0,  # never reached: the deadline of the caller covers everything
                trust_env=False,
                limits=httpx.Limits(max_connections=8, max_keepalive_connections=2),
                headers={"content-type": "application/cose"},
            )
            self._clients[key] = client
        return client

    async def close(self) -> None:
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()


def _words(data: bytes | bytearray) -> str:
    """The start of an unsigned refusal, fit to be logged."""
    return "".join(c for c in bytes(data[:60]).decode("ascii", "replace") if c.isprintable())
