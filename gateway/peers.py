"""What gateways say to each other: signed requests, signed answers. Pure.

A request is a COSE_Sign1 of the asking gateway. It names its audience, so it cannot be
shown to a third gateway; it carries a nonce and lives for at most a minute, so it cannot
be shown twice. The answer is a COSE_Sign1 of the asked gateway whose external data is
the hash of the request: an answer to one question is no answer to any other, and whoever
keeps both can prove later what was said.

    ask(identity, to, op, body, now)  -> Asked(data, nonce, ...)     at the asker
    Desk.open(data, now)              -> Request, or PeerError       at the origin
    answer(identity, request, status, body, now) -> bytes            at the origin
    Asked.read(data, public, now)     -> body, or PeerError          at the asker

TLS below this protects what is asked from the eyes of the network; it is not what makes
a request believed. `Desk` checks in a fixed order, cheapest first and nothing stored for
a stranger: size, form, who signs (known and not revoked), signature, audience, time,
replay, permission, rate. A nonce is remembered until its request would have expired
anyway; what was issued before this process began is refused, because the nonces of that
time are forgotten. Everything refused is counted by its reason.

Reasons of PeerError: "too-long", "not-cbor", "not-cose", "bad-field", "unknown-peer",
"revoked", "bad-signature", "wrong-audience", "expired", "too-far-ahead", "replayed",
"not-allowed", "rate-limited"; at the asker also "refused", with the reason as detail.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Protocol

from edge_agent import cbor, cose
from edge_agent.errors import CborError, ConfigError, CoseError, RemoteError
from edge_agent.interfaces import Crypto

REQUEST_MAX = 128 << 10  # bytes
ANSWER_MAX = 2 << 20
ITEMS_MAX = 65_536
LIFETIME_S = 60
# A peer's clock may differ by this much; the lifetime bounds the other direction.
SKEW_S = 30

_AAD_REQUEST = cbor.encode(["qis", 1, "request"])
_TYPE_REQUEST, _TYPE_ANSWER = 65020, 65021

# Operations, as text on the wire: they are few and are read by people in audit rows.
FETCH = "fetch"  # outcomes by id
NEAR = "near"  # no request of its own: the right to ask for more with a fetch
ANNOUNCE, WITHDRAW, LOOKUP, WATCH = "announce", "withdraw", "lookup", "watch"  # directory
PING = "ping"
ROUTE_OPS = (ANNOUNCE, WITHDRAW, LOOKUP, WATCH)
OPS = (FETCH, NEAR, PING, *ROUTE_OPS)
# What a request takes from its sender's allowance; a directory is asked often.
COST = {FETCH: 1.0, PING: 1.0, **dict.fromkeys(ROUTE_OPS, 0.25)}


class PeerError(RemoteError):
    """A request or an answer that is not believed; `reason` is one of those above."""


class Refused(PeerError):
    """A request of a known peer that is genuine and not granted; its refusal is signed."""

    def __init__(self, reason: str, detail: str, request: "Request") -> None:
        super().__init__(reason, detail)
        self.request = request


class Identity(Protocol):
    """Who signs: network.Network is one."""

    @property
    def gateway(self) -> bytes: ...  # 8 bytes
    @property
    def seed(self) -> bytes: ...  # Ed25519, 32 bytes


@dataclass(frozen=True, slots=True)
class Rules:
    """What one peer may do here.

    ops: operations.  domains: ids it may fetch from, None = every one.  per_minute: cost
    units (COST a request, and one for every four outcomes asked for); burst: units that may
    come at once.  group: outcomes are served only where at least so many devices
    have some with that label.  noise: standard deviation added to each of the 64 numbers
    of a vector before it leaves, 0 = the original.
    """

    ops: tuple[str, ...] = OPS
    domains: tuple[bytes, ...] | None = None
    per_minute: int = 1200
    burst: int = 300
    group: int = 1
    noise: int = 0

    @staticmethod
    def parse(fields: Mapping[str, Any], where: str = "rules") -> "Rules":
        """From JSON; ConfigError names the field."""
        known: dict[str, Any] = {}
        for name, value in fields.items():
            at = f"{where}.{name}"
            if name == "ops":
                if not isinstance(value, list) or not set(value) <= set(OPS):
                    raise ConfigError(f"{value!r}", at, f"Write a list out of {list(OPS)}")
                known[name] = tuple(value)
            elif name == "domains":
                try:
                    known[name] = None if value is None else tuple(map(bytes.fromhex, value))
                except (TypeError, ValueError):
                    raise ConfigError(f"{value!r}", at, "Write a list of domain ids, 16 hex digits")
            elif name in ("per_minute", "burst", "group", "noise"):
                top, low = (127, 0) if name == "noise" else (1_000_000, 1)
                if type(value) is not int or not low <= value <= top:
                    raise ConfigError(f"{value!r}", at, f"Write a whole number {low}..{top}")
                known[name] = value
            else:
                raise ConfigError(
                    "unknown field", at, "Known: ops domains per_minute burst group noise"
                )
        return Rules(**known)

    def allow(self, op: str, domain: bytes | None = None) -> bool:
        return op in self.ops and (domain is None or self.domains is None or domain in self.domains)


class PeerLike(Protocol):
    """What the desk needs to know of a peer: network.Peer is one."""

    @property
    def gateway(self) -> bytes: ...
    @property
    def public(self) -> bytes: ...
    @property
    def revoked_ms(self) -> int | None: ...
    @property
    def rules(self) -> Mapping[str, Any]: ...


# -- the asker ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as sent, and what its answer must fit."""

    data: bytes
    me: bytes
    to: bytes
    nonce: bytes
    expires_s: int

    def read(self, crypto: Crypto, public: bytes, data: bytes, now_s: int) -> Any:
        """The body of a good answer. PeerError("refused", reason) when the peer says no."""
        gateway, content = _open(
            crypto, data, ANSWER_MAX, _TYPE_ANSWER, _answer_aad(self.data), lambda _: public
        )
        if gateway != self.to:
            raise PeerError("unknown-peer", gateway.hex())
        if content.get(1) != self.me or content.get(2) != self.nonce:
            raise PeerError("wrong-audience")
        issued, status = content.get(3), content.get(5)
        if type(issued) is not int or type(status) is not str:
            raise PeerError("bad-field", "answer")
        # The hash of the request binds the answer to this minute already.
        if now_s > self.expires_s + SKEW_S:
            raise PeerError("expired", "answer")
        if status:
            raise PeerError("refused", status[:40])
        return content.get(6)


def ask(
    crypto: Crypto,
    identity: Identity,
    to: bytes,
    op: str,
    body: Any,
    now_s: int,
    nonce: bytes,
    lifetime_s: int = LIFETIME_S,
) -> Asked:
    """A request to gateway `to`. nonce: 16 random bytes, never used before."""
    expires = now_s + lifetime_s
    content = {1: to, 2: nonce, 3: now_s, 4: expires, 5: op, 6: body}
    data = _sign(crypto, identity, _TYPE_REQUEST, content, _AAD_REQUEST)
    if len(data) > REQUEST_MAX:
        raise PeerError("too-long", f"request of {len(data)} bytes")
    return Asked(data, identity.gateway, to, nonce, expires)


# -- the origin ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was believed."""

    sender: bytes
    op: str
    body: Any
    nonce: bytes
    digest: bytes
    rules: Rules


def answer(
    crypto: Crypto, identity: Identity, request: Request, status: str, body: Any, now_s: int
) -> bytes:
    """The signed answer; status "" is good, else a reason."""
    content = {1: request.sender, 2: request.nonce, 3: now_s, 5: status}
    if not status:
        content[6] = body
    return _sign(crypto, identity, _TYPE_ANSWER, content, _aad_of(request.digest))


@dataclass(slots=True)
class _Visitor:
    """What the desk remembers of one peer."""

    level: float
    at_s: float
    nonces: dict[bytes, int] = field(default_factory=dict)  # -> when it expires


class Desk:
    """Where requests are judged. One per process, because it remembers nonces.

    peer(gateway) gives the peer or None; its rules are read anew for every request, so
    that a revocation counts at once.
    """

    def __init__(
        self,
        crypto: Crypto,
        gateway: bytes,
        peer: Callable[[bytes], PeerLike | None],
        started_s: int,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self._crypto = crypto
        self._gateway = gateway
        self._peer = peer
        self._started_s = started_s
        self._defaults = dict(defaults or {})
        self._visitors: dict[bytes, _Visitor] = {}
        self.accepted: Counter[str] = Counter()  # op -> requests
        self.refused: Counter[str] = Counter()  # reason -> requests

    def open(self, data: bytes, now_s: float) -> Request:
        """The request, or PeerError; either way it is counted."""
        try:
            request = self._judge(data, now_s)
        except PeerError as error:
            self.refused[error.reason] += 1
            raise
        self.accepted[request.op] += 1
        return request

    def refuse(self, error: PeerError) -> PeerError:
        """Count a refusal found later, by the part that serves the operation."""
        self.refused[error.reason] += 1
        return error

    def charge(self, sender: bytes, units: float, now_s: float) -> None:
        """Take further units from a peer's allowance. PeerError("rate-limited")."""
        visitor = self._visitors.get(sender)
        peer = self._peer(sender)
        if visitor is None or peer is None:
            return
        self._take(visitor, self._rules(peer), units, now_s)

    def _judge(self, data: bytes, now_s: float) -> Request:
        found: list[PeerLike] = []

        def public(gateway: bytes) -> bytes:
            peer = self._peer(gateway)
            if peer is None:
                raise PeerError("unknown-peer", gateway.hex())
            if peer.revoked_ms is not None:
                raise PeerError("revoked", gateway.hex())
            found.append(peer)
            return peer.public

        sender, content = _open(
            self._crypto, data, REQUEST_MAX, _TYPE_REQUEST, _AAD_REQUEST, public
        )
        if content.get(1) != self._gateway:
            raise PeerError("wrong-audience")
        nonce, issued, expires, op = (content.get(label) for label in (2, 3, 4, 5))
        if type(nonce) is not bytes or len(nonce) != 16:
            raise PeerError("bad-field", "nonce")
        if type(issued) is not int or type(expires) is not int or type(op) is not str:
            raise PeerError("bad-field", "time or operation")
        if issued > now_s + SKEW_S or expires - issued > LIFETIME_S:
            raise PeerError("too-far-ahead")
        if now_s >= expires or issued < self._started_s:
            raise PeerError("expired")
        visitor = self._visitors.get(sender)
        rules = self._rules(found[0])
        if visitor is None:
            visitor = self._visitors[sender] = _Visitor(rules.burst, now_s)
        if nonce in visitor.nonces:
            raise PeerError("replayed")
        request = Request(sender, op, content.get(6), nonce, sha256(data).digest(), rules)
        if op not in COST or not rules.allow(op):
            raise Refused("not-allowed", op[:20], request)
        try:
            self._take(visitor, rules, COST[op], now_s)
        except PeerError as error:
            raise Refused(error.reason, op, request)
        if len(visitor.nonces) > 8 * (rules.burst + rules.per_minute):
            visitor.nonces = {n: end for n, end in visitor.nonces.items() if end > now_s}
        visitor.nonces[nonce] = expires
        return request

    def _rules(self, peer: PeerLike) -> Rules:
        return Rules.parse({**self._defaults, **peer.rules}, f"rules of {peer.gateway.hex()}")

    def _take(self, visitor: _Visitor, rules: Rules, units: float, now_s: float) -> None:
        gained = max(0.0, now_s - visitor.at_s) * rules.per_minute / 60
        visitor.level = min(float(rules.burst), visitor.level + gained)
        visitor.at_s = now_s
        if visitor.level < units:
            raise PeerError("rate-limited")
        visitor.level -= units


# -- both ---------------------------------------------------------------------------


def _aad_of(digest: bytes) -> bytes:
    return cbor.encode(["qis", 1, "answer", digest])


def _answer_aad(request: bytes) -> bytes:
    return _aad_of(sha256(request).digest())


def _sign(crypto: Crypto, identity: Identity, typ: int, content: Any, aad: bytes) -> bytes:
    header = {
        cose.HDR_ALG: cose.ALG_EDDSA,
        cose.HDR_KID: identity.gateway,
        cose.HDR_TYP: typ,
    }
    return cose.sign1(crypto, identity.seed, header, cbor.encode(content), aad)


def _open(
    crypto: Crypto,
    data: bytes,
    limit: int,
    typ: int,
    aad: bytes,
    public: Callable[[bytes], bytes],
) -> tuple[bytes, dict[Any, Any]]:
    """Signer and content of a signed message; nothing is read before it is verified."""
    if len(data) > limit:
        raise PeerError("too-long", f"{len(data)} bytes, the limit is {limit}")
    try:
        message = cose.parse(data, 64)
        signer = message.protected.get(cose.HDR_KID)
        if type(signer) is not bytes or len(signer) != 8:
            raise PeerError("bad-field", "signer")
        key = public(signer)
        cose.verify_sign1(crypto, key, message, aad)
        if message.protected.get(cose.HDR_TYP) != typ:
            raise PeerError("bad-field", "type")
        content = cbor.decode(message.payload, 8, ITEMS_MAX)
    except CborError as error:
        raise PeerError("not-cbor", str(error))
    except CoseError as error:
        raise PeerError("bad-signature" if error.reason == "bad-signature" else "not-cose")
    if type(content) is not dict:
        raise PeerError("bad-field", "content is no map")
    return signer, content
