"""The listeners of the routing process: HTTPS for peers, HTTP on loopback for its owner.

Peers POST one signed request and get one signed answer. Whoever cannot be identified
gets an unsigned refusal with an HTTP status and nothing else; a known peer whose request
is refused later (rights, rate, unknown domain) gets that refusal signed. A request is
bounded in size and in the time it may take to arrive, and at most CONNECTIONS are open:
a slow or mute caller occupies one of them for BODY_S, no thread, and never the ingest
process, which is another one.

The TLS certificate is self-signed Ed25519; callers have pinned it. TLS 1.3 only.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route as Path_

from edge_agent.cpython.signer import HostCrypto
from edge_agent.errors import StoreError
from gateway.ask import PATH
from gateway.peers import REQUEST_MAX, Desk, Identity, PeerError, Refused, Request, answer

log = logging.getLogger("gateway.serve")

CONNECTIONS = 128
BODY_S = 5.0
# A directory holds a watcher's request open for at most this long.
HANDLER_S = 40.0

Handler = Callable[[Request], Awaitable[Any]]
# (sender or None, operation or "", verdict: "" or a reason)
Audit = Callable[[bytes | None, str, str], None]

_STATUS = {
    "too-long": 413,
    "not-cbor": 400,
    "not-cose": 400,
    "bad-field": 400,
    "rate-limited": 429,
    "slow": 408,
}


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, or a StoreError that says what to do. port 0: any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(CONNECTIONS)
    except OSError as error:
        sock.close()
        raise StoreError(
            error.strerror or str(error),
            f"{host}:{port}",
            "Choose another port in gateway.json (routing), or stop what uses it",
            error.errno or 0,
        )
    sock.setblocking(False)
    return sock


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.3 with the gateway's own certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    return context


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process has more than one listener and handles its signals itself."""
        yield


class Listener:
    """One application on one socket, in the running loop."""

    def __init__(
        self, app: Starlette, host: str, port: int, tls: ssl.SSLContext | None = None
    ) -> None:
        self._sock = bind(host, port)
        self.port = int(self._sock.getsockname()[1])
        config = uvicorn.Config(
            app,
            loop="none",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # it calls a connection that is slow to close an error
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=20,
            timeout_graceful_shutdown=1,
        )
        config.load()
        config.ssl = tls
        self._server = _Uvicorn(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve([self._sock]))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.005)
        if self._task.done():
            await self._task  # raises what went wrong

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._sock.close()


async def read_body(request: HttpRequest, limit: int) -> bytes:
    """The body, or PeerError("too-long" | "slow")."""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > limit:
        raise PeerError("too-long", f"the limit is {limit} bytes")
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                data += part
                if len(data) > limit:
                    raise PeerError("too-long", f"the limit is {limit} bytes")
    except TimeoutError:
        raise PeerError("slow", f"not complete within {BODY_S} s")
    return bytes(data)


def peer_app(
    identity: Identity,
    desk: Desk,
    handlers: Mapping[str, Handler],
    audit: Audit,
    now_s: Callable[[], float] = time.time,
) -> Starlette:
    """The application for peers. handlers: operation -> async function of a Request that
    returns the body of the answer or raises PeerError."""
    crypto = HostCrypto()

    async def ask(http: HttpRequest) -> Response:
        try:
            data = await read_body(http, REQUEST_MAX)
        except PeerError as error:
            audit(None, "", desk.refuse(error).reason)
            # What else this caller sends is not waited for.
            return _refusal(error, {"connection": "close"})
        except ClientDisconnect:
            audit(None, "", desk.refuse(PeerError("broken")).reason)
            return Response(status_code=400)
        try:
            request = desk.open(data, now_s())
        except Refused as error:
            audit(error.request.sender, error.request.op, error.reason)
            return signed(error.request, error.reason, None)
        except PeerError as error:
            audit(None, "", error.reason)
            return _refusal(error)
        status, body = "", None
        handler = handlers.get(request.op)
        try:
            if handler is None:
                raise PeerError("not-allowed", "not served here")
            async with asyncio.timeout(HANDLER_S):
                body = await handler(request)
        except PeerError as error:
            status = desk.refuse(error).reason
        except TimeoutError:
            status = desk.refuse(PeerError("slow")).reason
        except Exception:
            # A fault of ours must not take the listener with it, nor be told to a peer.
            log.exception("%s of %s", request.op, request.sender.hex())
            status = desk.refuse(PeerError("internal")).reason
        audit(request.sender, request.op, status)
        return signed(request, status, body)

    def signed(request: Request, status: str, body: Any) -> Response:
        sealed = answer(crypto, identity, request, status, body, int(now_s()))
        return Response(sealed, media_type="application/cose")

    return Starlette(routes=[Path_(PATH, ask, methods=["POST"])])


def _refusal(error: PeerError, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(error.reason, _STATUS.get(error.reason, 403), headers)
