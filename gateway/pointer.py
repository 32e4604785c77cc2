"""Pointers: what one gateway lets the others know about an outcome it keeps. SPEC.md 16.

A pointer says: gateway G has an outcome with this label, whose vector looks roughly like
this sketch; ask for it under this id. It is a CBOR map, signed by its gateway, then sealed
under the network's key, and it is worth something in one place only:

- The signature covers the routing key it was made for: copied to another key it is void.
- The key covers domain, codebook version, label and cell; the reader computes it again.
- The cell follows from the sketch; a reader decodes the sketch and looks where it falls.
  So nobody can fill a popular cell with pointers that do not belong there.
- It ends at its expiry, which cannot be far, and of one outcome the highest epoch counts.
  A withdrawal is a pointer without a sketch and with a higher epoch: who has seen it
  refuses older ones. Whoever has not can be shown the old one until that expires.

Sealing keeps it from the nodes that store it, not from members. A member can forge nothing
in another's name, but it can put up pointers of its own that lead nowhere, and split
markers; therefore `Reader` takes a few per gateway and key, and counts all it refuses.

**Cost.** Checking a signature takes longer than everything else together. So `Reader`
remembers what it has verified; it checks gateways in turn and stops at its caps, so that
ten thousand pointers of one gateway cost no more than the few that are taken; and it can
leave signatures out (`verify=False`) for a query that ranks hundreds of pointers and then
confirms the few that it follows.
"""

import functools
import os
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from edge_agent import cbor, cose
from edge_agent.errors import CborError, RemoteError
from edge_agent.interfaces import Crypto
from gateway.cards import ENDPOINT_MAX, split_endpoint
from gateway.cells import MAX_LEVEL, Path, assign, path_key, valid_path
from gateway.codebook import Codebook
from gateway.network import Network
from gateway.sketch import SIZES, SketchError

OUTCOME, AGENT, MARKER, WITHDRAWAL = 1, 2, 3, 4
KINDS = {OUTCOME: "outcome", AGENT: "agent", MARKER: "marker", WITHDRAWAL: "withdrawal"}
CONFIRMED, SYNTHESISED = 1, 2

POINTER_MAX = 320  # bytes
# Longest life: a reader refuses what would outlive it, so that a lost gateway's pointers end.
AHEAD_MAX_S = 8 * 86_400
NONCE_BYTES = 12
KEY_INFO = b"qis1 pointer"
_SIGNATURE_BYTES = 64
_TAG_BYTES = 16
_ITEMS_MAX = 64
# The headers of both COSE structures are always the same, so they are not sent.
SIGN1_HEADER = cbor.encode({cose.HDR_ALG: cose.ALG_EDDSA, cose.HDR_TYP: 65013})
ENCRYPT0_HEADER = cbor.encode({cose.HDR_ALG: 24})  # ChaCha20/Poly1305

REASONS = (
    "too-long",
    "not-cbor",
    "bad-seal",
    "bad-kind",
    "bad-field",
    "missing-field",
    "unknown-gateway",
    "revoked",
    "wrong-domain",
    "wrong-version",
    "wrong-key",
    "expired",
    "too-far-ahead",
    "bad-signature",
    "misplaced",
    "replayed",
    "too-many",
)


class PointerError(RemoteError):
    """A pointer that is not believed; `reason` is one of REASONS."""


class Pointer(NamedTuple):
    """One pointer, marker or withdrawal.

    label: None for agents.  path: the cell of its key.  id: outcome id (16 bytes), agent id
    (8 bytes), b"" in a marker.  epoch: grows with every change of one pointer.
    sketch: b"" in markers and withdrawals.  flags: CONFIRMED | SYNTHESISED.
    endpoint: "host:port", "" for the one in the gateway's card.
    """

    kind: int
    domain: bytes
    version: int
    label: int | None
    path: Path
    gateway: bytes
    id: bytes
    epoch: int
    expires_s: int
    sketch_kind: int = 0
    sketch: bytes = b""
    flags: int = 0
    confidence: int = 0
    endpoint: str = ""

    def key(self, network: Network) -> bytes:
        """Where it belongs, 20 bytes."""
        return _key(network.key, self.domain, self.version, self.label, self.path)

    def token(self, network: Network) -> bytes:
        """Names it towards a Route, over all its updates; 16 bytes that tell outsiders nothing."""
        text = cbor.encode(["qis token", self.key(network), self.gateway, self.id])
        return network.crypto.hmac_sha256(network.key or bytes(32), text)[:16]

    def withdrawal(self, epoch: int) -> "Pointer":
        """What takes its place when the outcome is no longer to be had."""
        return self._replace(
            kind=WITHDRAWAL, epoch=epoch, sketch_kind=0, sketch=b"", flags=0, confidence=0,
            endpoint="",
        )  # fmt: skip


class Claim(NamedTuple):
    """An opened pointer whose signature has not been checked yet."""

    pointer: Pointer
    body: bytes
    signature: bytes
    key: bytes


# Many pointers are read of one key: what depends on the key alone is worked out once.
_key = functools.lru_cache(maxsize=4096)(path_key)


@functools.lru_cache(maxsize=4096)
def external(network: int, key: bytes) -> bytes:
    """external_aad of signature and seal: binds a pointer to its network and key."""
    return cbor.encode(["qis pointer", 1, network, key])


@functools.lru_cache(maxsize=4096)
def _sealed_aad(network: int, key: bytes) -> bytes:
    return cose.enc_structure(ENCRYPT0_HEADER, external(network, key))


def number_of(path: Path) -> int:
    """A path as sent: a 1 and then its bits, as a binary number."""
    number = 1
    for bit in path:
        number = 2 * number + bit
    return number


def path_of(number: int) -> Path:
    return tuple(int(digit) for digit in format(number, "b")[1:])


def seal(pointer: Pointer, network: Network, crypto: Crypto, nonce: "bytes | None" = None) -> bytes:
    """The value to announce under `pointer.key(network)`.

    nonce: 12 bytes, random when None; one must never seal two different pointers.
    ValueError when a reader would refuse the fields, or they name another gateway.
    """
    if pointer.gateway != network.gateway:
        raise ValueError(f"gateway {pointer.gateway.hex()} is not this one")
    body = _encode(pointer)
    try:
        _parse(cbor.decode(body, 2, _ITEMS_MAX))
    except (PointerError, CborError) as error:
        raise ValueError(str(error))
    aad = external(network.network, pointer.key(network))
    signature = crypto.sign(network.seed, cose.sig_structure(SIGN1_HEADER, body, aad))
    data = cbor.encode([body, signature])
    if network.key:
        nonce = os.urandom(NONCE_BYTES) if nonce is None else nonce
        more = _sealed_aad(network.network, pointer.key(network))
        inner = _cipher(network).encrypt(nonce, data, more)
        data = cbor.encode([nonce, inner])
    if len(data) > POINTER_MAX:
        raise ValueError(f"{len(data)} bytes, at most {POINTER_MAX}")
    return data


def open_pointer(
    data: bytes, key: bytes, network: Network, codebook: Codebook, now_s: int
) -> Pointer:
    """The pointer in a value found under `key`, fully checked, or PointerError.

    "replayed" and "too-many" need memory: see Reader.
    """
    found = claim(data, key, network, codebook, now_s)
    verify(found, network)
    if not placed(found.pointer, codebook):
        raise PointerError("misplaced")
    return found.pointer


def claim(data: bytes, key: bytes, network: Network, codebook: Codebook, now_s: int) -> Claim:
    """Everything but signature and place."""
    if len(data) > POINTER_MAX:
        raise PointerError("too-long", f"{len(data)} bytes")
    if network.key:
        nonce, inner = _two(data)
        if len(nonce) != NONCE_BYTES or len(inner) < _TAG_BYTES:
            raise PointerError("bad-seal", "not sealed")
        aad = _sealed_aad(network.network, key)
        try:
            data = _cipher(network).decrypt(nonce, inner, aad)
        except InvalidTag:
            raise PointerError("bad-seal") from None
    body, signature = _two(data)
    try:
        content = cbor.decode(body, 2, _ITEMS_MAX)
    except CborError as error:
        raise PointerError("not-cbor", error.reason)
    pointer = _parse(content)
    trusted(pointer, network)
    if pointer.domain != codebook.domain_id:
        raise PointerError("wrong-domain", pointer.domain.hex())
    if pointer.version != codebook.version:
        raise PointerError("wrong-version", str(pointer.version))
    if not valid_path(codebook, pointer.path):
        raise PointerError("bad-field", "path")
    if pointer.sketch and pointer.sketch_kind != codebook.kind:
        raise PointerError("bad-field", "sketch kind")
    if pointer.key(network) != key:
        raise PointerError("wrong-key")
    timely(pointer, now_s)
    return Claim(pointer, body, signature, key)


def trusted(pointer: Pointer, network: Network) -> bytes:
    """The public key of the pointer's gateway."""
    public = network.public_key(pointer.gateway)
    if public is None:
        known = network.revoked(pointer.gateway)
        raise PointerError("revoked" if known else "unknown-gateway", pointer.gateway.hex())
    return public


def timely(pointer: Pointer, now_s: int) -> None:
    if pointer.expires_s <= now_s:
        raise PointerError("expired", f"{now_s - pointer.expires_s} s ago")
    if pointer.expires_s > now_s + AHEAD_MAX_S:
        raise PointerError("too-far-ahead", f"{pointer.expires_s - now_s} s")


def verify(found: Claim, network: Network) -> None:
    """PointerError unless the gateway it names made it for this key."""
    public = trusted(found.pointer, network)
    aad = external(network.network, found.key)
    try:
        _public(public).verify(found.signature, cose.sig_structure(SIGN1_HEADER, found.body, aad))
    except (InvalidSignature, ValueError):
        raise PointerError("bad-signature", found.pointer.gateway.hex()) from None


def placed(pointer: Pointer, codebook: Codebook) -> bool:
    """Whether its sketch falls into the cell it is in. True for what has no sketch."""
    if not pointer.sketch:
        return True
    try:
        decoded = codebook.sketcher.decode(pointer.sketch)
    except SketchError:
        return False
    return assign(codebook, decoded)[0][: len(pointer.path)] == pointer.path


# -- bytes --------------------------------------------------------------------------


def _two(data: bytes) -> tuple[bytes, bytes]:
    """The byte strings of an array of two."""
    try:
        parts = cbor.decode(data, 1, 4)
    except CborError as error:
        raise PointerError("not-cbor", error.reason)
    if not isinstance(parts, list) or [type(part) for part in parts] != [bytes, bytes]:
        raise PointerError("not-cbor", "no array of two byte strings")
    return parts[0], parts[1]


@functools.lru_cache(maxsize=8192)
def _public(raw: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(raw)


def _cipher(network: Network) -> ChaCha20Poly1305:
    return _cipher_of(network.key)


@functools.lru_cache(maxsize=8)
def _cipher_of(network_key: bytes) -> ChaCha20Poly1305:
    from edge_agent.cpython.signer import HostCrypto

    return ChaCha20Poly1305(cose.hkdf(HostCrypto(), network_key, KEY_INFO, 32))


def _encode(pointer: Pointer) -> bytes:
    content: dict[int, object] = {
        1: pointer.kind,
        2: pointer.domain,
        3: pointer.version,
        5: number_of(pointer.path),
        6: pointer.gateway,
        8: pointer.epoch,
        9: pointer.expires_s,
    }
    if pointer.label is not None:
        content[4] = pointer.label
    if pointer.kind != MARKER:
        content[7] = pointer.id
    if pointer.kind in (OUTCOME, AGENT):
        content[10] = pointer.sketch_kind
        content[11] = pointer.sketch
        if pointer.flags:
            content[12] = pointer.flags
        if pointer.endpoint:
            content[14] = pointer.endpoint
    if pointer.kind == OUTCOME:
        content[13] = pointer.confidence
    return cbor.encode(content)


def _parse(content: object) -> Pointer:
    """The pointer in a decoded body; every field there, of its type and in its range."""
    if not isinstance(content, dict):
        raise PointerError("not-cbor", "no map")
    kind = _number(content, 1, 0, 255, "kind")
    if kind not in KINDS:
        raise PointerError("bad-kind", str(kind))
    agent = 4 not in content
    if agent and kind == OUTCOME:
        raise PointerError("missing-field", "label")
    if not agent and kind == AGENT:
        raise PointerError("bad-field", "label")
    size, sketched = 8 if agent else 16, kind in (OUTCOME, AGENT)
    sketch_kind = _number(content, 10, 1, 255, "sketch kind") if sketched else 0
    if sketched and sketch_kind not in SIZES:
        raise PointerError("bad-field", "sketch kind")
    return Pointer(
        kind,
        _bytes(content, 2, 8, "domain"),
        _number(content, 3, 0, 0xFFFF, "version"),
        None if agent else _number(content, 4, 0, 0xFFFF, "label"),
        path_of(_number(content, 5, 2, (2 << MAX_LEVEL) - 1, "cell")),
        _bytes(content, 6, 8, "gateway"),
        _bytes(content, 7, size, "id") if kind != MARKER else b"",
        _number(content, 8, 0, 0xFFFFFFFF, "epoch"),
        _number(content, 9, 1, 0xFFFFFFFF, "expires"),
        sketch_kind,
        _bytes(content, 11, SIZES[sketch_kind], "sketch") if sketched else b"",
        _number(content, 12, 1, 255, "flags") if sketched and 12 in content else 0,
        _number(content, 13, 0, 255, "confidence") if kind == OUTCOME else 0,
        _endpoint(content) if sketched and 14 in content else "",
    )


def _number(content: "dict[object, object]", label: int, low: int, high: int, what: str) -> int:
    value = content.get(label)
    if type(value) is int and low <= value <= high:
        return value
    raise PointerError("bad-field" if label in content else "missing-field", what)


def _bytes(content: "dict[object, object]", label: int, size: int, what: str) -> bytes:
    value = content.get(label)
    if type(value) is bytes and len(value) == size:
        return value
    raise PointerError("bad-field" if label in content else "missing-field", what)


def _endpoint(content: "dict[object, object]") -> str:
    value = content[14]
    if not isinstance(value, str) or len(value.encode()) > ENDPOINT_MAX:
        raise PointerError("bad-field", "endpoint")
    try:
        split_endpoint(value)
    except ValueError:
        raise PointerError("bad-field", "endpoint")
    return value
