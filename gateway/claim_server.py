"""The listener where a device redeems its code: open while a code is open, and no longer.

HTTPS, with the certificate of the devices' broker. Two requests:

    GET  /authority    the authority's certificate, PEM. No secret: whoever asks compares it
                       with the pin in the code, and goes on only when it is that one
    POST /claim        {"secret", "nonce"} in hex -> {"config", "authority", "domains"}

Not MQTT: a device that is not yet known would need a login for all, and rules for topics
that anyone may use; and the broker could not tell one stranger from another to slow them
down. Here a wrong secret costs its address a second that doubles, whatever the others do.
With 80 random bits a guess is hopeless at any rate; the limit keeps the counters honest.

One process at a time has the listener and serves every open code; others that wait for
theirs take over when it ends.
"""

import asyncio
import base64
import fcntl
import json
import os
import signal
import socket
import ssl
import time
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from edge_agent.cpython.claim_code import SECRET_BYTES
from edge_agent.errors import ConfigError, EdgeError
from gateway import enrol
from gateway.claims import Claim, ClaimError, Claims
from gateway.config import GatewayConfig
from gateway.keys import Registry
from gateway.peers import PeerError
from gateway.serve import Listener, read_body
from gateway.store import Store

NONCE_BYTES = 16
REQUEST_MAX = 1024
DOMAIN_MAX = 65_536
ADDRESSES = 1024
SLOWEST_S = 60.0
POLL_S = 0.2
LINGER_S = 1.5  # an answer that was lost may be asked for again
STATUS = {
    "unknown": 403, "used": 409, "expired": 410, "revoked": 403, "superseded": 409,
    "rate-limited": 429, "bad-field": 400,
}  # fmt: skip


class Brake:
    """Who guessed wrong waits, twice as long each time. Bounded: old addresses are forgotten."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, float]] = {}  # address -> (until, pause)

    def wait(self, address: str, now: float) -> float:
        """Seconds that `address` has to wait still."""
        until, _ = self._until.get(address, (0.0, 0.0))
        return max(0.0, until - now)

    def wrong(self, address: str, now: float) -> None:
        _, pause = self._until.pop(address, (0.0, 0.5))
        pause = min(SLOWEST_S, pause * 2)
        while len(self._until) >= ADDRESSES:
            del self._until[next(iter(self._until))]
        self._until[address] = (now + pause, pause)


class Desk:
    """Redeems codes for one gateway. What is refused is counted in the database."""

    def __init__(
        self, config: GatewayConfig, store: Store, registry: Registry, claims: Claims
    ) -> None:
        if config.devices is None:
            raise ConfigError(
                "devices do not use TLS here", str(config.path), "Run: edge-gateway tls --make"
            )
        self.config = config
        self.authority = config.devices.ca.read_text()
        self._store, self._registry, self._claims = store, registry, claims
        self._brake = Brake()
        self._refused: dict[str, int] = {}

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/authority", self._authority, methods=["GET"]),
                Route("/claim", self._claim, methods=["POST"]),
            ]
        )

    async def _authority(self, _request: Request) -> Response:
        return PlainTextResponse(self.authority, media_type="application/x-pem-file")

    async def _claim(self, request: Request) -> Response:
        address = request.client.host if request.client else ""
        now = time.monotonic()
        wait = self._brake.wait(address, now)
        if wait:
            return self._refuse("rate-limited", {"retry-after": str(int(wait) + 1)})
        try:
            fields = json.loads(await read_body(request, REQUEST_MAX))
            secret, nonce = bytes.fromhex(fields["secret"]), bytes.fromhex(fields["nonce"])
            if len(secret) != SECRET_BYTES or len(nonce) != NONCE_BYTES:
                raise ValueError
        except PeerError:  # too long, or too slow
            return self._refuse("bad-field")
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._refuse("bad-field")
        try:
            return JSONResponse(self.answer(secret, nonce, _now_ms()))
        except ClaimError as error:
            if error.reason == "unknown":
                self._brake.wrong(address, now)
            return self._refuse(error.reason)
        except EdgeError as error:
            return JSONResponse({"error": error.what, "fix": error.fix}, 500)

    def answer(self, secret: bytes, nonce: bytes, now_ms: int) -> dict[str, Any]:
        """What the device gets. ClaimError."""
        config = self.config
        device = self._claims.redeem(secret, nonce, self._registry, now_ms)
        extra, pin = self._claims.fields(secret)
        enrol.tell_brokers(config, self._registry)
        fields = enrol.device_file(config, self._registry, device, "", extra, pin)
        domains = {
            path.name: base64.b64encode(path.read_bytes()).decode()
            for path in sorted(config.domains.iterdir())
            if path.is_file() and path.stat().st_size <= DOMAIN_MAX
        }
        return {"config": fields, "authority": self.authority, "domains": domains}

    def _refuse(self, reason: str, headers: "dict[str, str] | None" = None) -> Response:
        self._refused[reason] = self._refused.get(reason, 0) + 1
        return JSONResponse({"error": reason}, STATUS[reason], headers)

    def count(self) -> None:
        """Put what was refused since the last call into the database: `edge-gateway status`.

        Called now and then, so that a flood of bad requests is no flood of writes.
        """
        refused, self._refused = self._refused, {}
        if not refused:
            return
        self._store.begin()
        try:
            for reason, count in refused.items():
                self._store.count_rejected("claim-" + reason, count, _now_ms())
            self._store.commit()
        except BaseException:
            self._store.rollback()
            raise


def _context(config: GatewayConfig) -> ssl.SSLContext:
    assert config.devices is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(config.devices.cert, config.devices.key)
    return context


async def _serve(desk: Desk, claims: Claims, mine: Claim) -> Claim:
    """Serve every open code, until there is none or we are told to end."""
    devices = desk.config.devices
    assert devices is not None
    host = devices.listen or ("::" if socket.has_dualstack_ipv6() else "0.0.0.0")  # noqa: S104
    listener = Listener(desk.app(), host, devices.claim_port, _context(desk.config))
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await listener.start()
    try:
        while claims.waiting(_now_ms()) and not told.is_set():
            await asyncio.sleep(POLL_S)
            desk.count()
        if not told.is_set():
            await asyncio.sleep(LINGER_S)
    finally:
        await listener.stop()
        desk.count()
    return claims.get(mine.id)


def wait_for(
    config: GatewayConfig, store: Store, registry: Registry, claims: Claims, mine: Claim
) -> Claim:
    """Return when `mine` is redeemed, void, or this process is told to end.

    Serves the codes of others as well, as long as any is open.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    desk = Desk(config, store, registry, claims)
    lock = os.open(claims.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while claims.get(mine.id).open(_now_ms()):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(POLL_S)
                continue
            return asyncio.run(_serve(desk, claims, mine))
        return claims.get(mine.id)
    finally:
        os.close(lock)


def _now_ms() -> int:
    return int(time.time() * 1000)
