"""COSE_Mac0, COSE_Encrypt0 and COSE_Sign1 (RFC 9052), with the primitives handed in.

Three algorithms and no choice at run time: HMAC 256/64 (4), AES-CCM-16-64-128 (10) and
EdDSA with Ed25519 (-8). What is authenticated is never the message itself but a
structure [context, protected header, external data, payload]; the functions
`mac_structure`, `enc_structure` and `sig_structure` give those bytes, so that anyone
can check them by hand. Messages carry their CBOR tag (17, 16, 18).

`parse` splits a message and believes nothing; `verify_*` and `open_encrypt0` then check
algorithm and tag. Reasons of CoseError: "not-cose", "bad-alg", "bad-tag",
"bad-signature", "bad-iv". Bytes that are no deterministic CBOR raise CborError.
"""

from collections import namedtuple

from edge_agent import cbor
from edge_agent.errors import CoseError
from edge_agent.interfaces import Crypto

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TAG_ENCRYPT0 = 16
TAG_MAC0 = 17
TAG_SIGN1 = 18

HDR_ALG = 1
HDR_KID = 4
HDR_IV = 5
HDR_TYP = 16

ALG_HMAC_256_64 = 4
ALG_AES_CCM_16_64_128 = 10
ALG_EDDSA = -8

MAC_BYTES = 8
NONCE_BYTES = 13
SIGNATURE_BYTES = 64

# protected: dict; protected_raw: its bytes as sent; unprotected: dict; payload: bytes
# (for Encrypt0 the ciphertext with its tag); auth: MAC or signature, b"" for Encrypt0.
Cose = namedtuple("Cose", ("tag", "protected", "protected_raw", "unprotected", "payload", "auth"))


def hkdf(crypto: Crypto, key: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF-SHA256 (RFC 5869) with an empty salt; length 1..32, so one block is enough."""
    if not 1 <= length <= 32:
        raise ValueError("hkdf length %d, allowed 1..32" % length)
    # An absent salt is a string of zeros as long as the hash.
    secret = crypto.hmac_sha256(bytes(32), key)
    return crypto.hmac_sha256(secret, info + b"\x01")[:length]


def mac_structure(protected_raw: bytes, payload: bytes, aad: bytes) -> bytes:
    """What the tag of a COSE_Mac0 covers (RFC 9052 section 6.3)."""
    return cbor.encode(["MAC0", protected_raw, aad, payload])


def enc_structure(protected_raw: bytes, aad: bytes) -> bytes:
    """Additional data of a COSE_Encrypt0 (RFC 9052 section 5.3)."""
    return cbor.encode(["Encrypt0", protected_raw, aad])


def sig_structure(protected_raw: bytes, payload: bytes, aad: bytes) -> bytes:
    """What the signature of a COSE_Sign1 covers (RFC 9052 section 4.4)."""
    return cbor.encode(["Signature1", protected_raw, aad, payload])


def mac0(
    crypto: Crypto, key: bytes, protected: "dict[int, Any]", payload: bytes, aad: bytes = b""
) -> bytes:
    """A tagged COSE_Mac0. `protected` must name algorithm 4."""
    raw = _protect(protected, ALG_HMAC_256_64)
    tag = crypto.hmac_sha256(key, mac_structure(raw, payload, aad))[:MAC_BYTES]
    return cbor.encode(cbor.Tag(TAG_MAC0, [raw, {}, payload, tag]))


def encrypt0(
    crypto: Crypto,
    key: bytes,
    nonce: bytes,
    protected: "dict[int, Any]",
    payload: bytes,
    aad: bytes = b"",
) -> bytes:
    """A tagged COSE_Encrypt0. A nonce (13 bytes) must never meet the same key twice."""
    raw = _protect(protected, ALG_AES_CCM_16_64_128)
    if len(nonce) != NONCE_BYTES:
        raise CoseError("bad-iv", "%d bytes" % len(nonce))
    sealed = crypto.ccm_seal(key, nonce, payload, enc_structure(raw, aad))
    return cbor.encode(cbor.Tag(TAG_ENCRYPT0, [raw, {HDR_IV: nonce}, sealed]))


def sign1(
    crypto: Crypto,
    private_key: bytes,
    protected: "dict[int, Any]",
    payload: bytes,
    aad: bytes = b"",
) -> bytes:
    """A tagged COSE_Sign1 with Ed25519. Hosts only."""
    raw = _protect(protected, ALG_EDDSA)
    signature = crypto.sign(private_key, sig_structure(raw, payload, aad))
    return cbor.encode(cbor.Tag(TAG_SIGN1, [raw, {}, payload, signature]))


def parse(data: "bytes | bytearray | memoryview", max_items: int = 1024) -> Cose:
    """Split a tagged message. CborError or CoseError("not-cose")."""
    message = cbor.decode(data, 8, max_items)
    if not isinstance(message, cbor.Tag) or not isinstance(message.value, list):
        raise CoseError("not-cose", "no tagged array")
    parts = message.value
    if message.number not in (TAG_MAC0, TAG_ENCRYPT0, TAG_SIGN1):
        raise CoseError("not-cose", "tag %d" % message.number)
    if len(parts) != (3 if message.number == TAG_ENCRYPT0 else 4):
        raise CoseError("not-cose", "%d parts" % len(parts))
    raw, unprotected, payload = parts[0], parts[1], parts[2]
    auth = parts[3] if len(parts) == 4 else b""
    if not isinstance(unprotected, dict):
        raise CoseError("not-cose", "unprotected header")
    for part in (raw, payload, auth):
        if not isinstance(part, bytes):
            raise CoseError("not-cose", "a part is no byte string")
    protected = cbor.decode(raw, 4, 64) if raw else {}
    if not isinstance(protected, dict):
        raise CoseError("not-cose", "protected header")
    return Cose(message.number, protected, raw, unprotected, payload, auth)


def verify_mac0(crypto: Crypto, key: bytes, message: Cose, aad: bytes = b"") -> None:
    """CoseError unless `message` is a Mac0 made with this key and this external data."""
    _expect(message, TAG_MAC0, ALG_HMAC_256_64)
    structure = mac_structure(message.protected_raw, message.payload, aad)
    if not crypto.equal(crypto.hmac_sha256(key, structure)[:MAC_BYTES], message.auth):
        raise CoseError("bad-tag")


def open_encrypt0(crypto: Crypto, key: bytes, message: Cose, aad: bytes = b"") -> bytes:
    """The plaintext, or CoseError."""
    _expect(message, TAG_ENCRYPT0, ALG_AES_CCM_16_64_128)
    nonce = message.unprotected.get(HDR_IV)
    if not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
        raise CoseError("bad-iv")
    if len(message.payload) < MAC_BYTES:
        raise CoseError("bad-tag", "shorter than its tag")
    return crypto.ccm_open(key, nonce, message.payload, enc_structure(message.protected_raw, aad))


def verify_sign1(crypto: Crypto, public_key: bytes, message: Cose, aad: bytes = b"") -> None:
    """CoseError unless `message` is a Sign1 made by the owner of `public_key`."""
    _expect(message, TAG_SIGN1, ALG_EDDSA)
    structure = sig_structure(message.protected_raw, message.payload, aad)
    if len(message.auth) != SIGNATURE_BYTES or not crypto.verify(
        public_key, message.auth, structure
    ):
        raise CoseError("bad-signature")


def _protect(protected: "dict[int, Any]", alg: int) -> bytes:
    if protected.get(HDR_ALG) != alg:
        raise CoseError("bad-alg", "the protected header must name algorithm %d" % alg)
    return cbor.encode(protected)


def _expect(message: Cose, tag: int, alg: int) -> None:
    if message.tag != tag:
        raise CoseError("not-cose", "tag %d where %d belongs" % (message.tag, tag))
    if message.protected.get(HDR_ALG) != alg:
        raise CoseError("bad-alg")
