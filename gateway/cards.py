"""A gateway's identity, and the card that makes it known to others.

The identity is an Ed25519 key with a self-signed certificate. A card is a COSE_Sign1 by
that key around gateway id, name, key, certificate and endpoint: it proves that whoever
made it holds the key, nothing more. That the card is the wanted one is for the owner who
adds it to know; where it comes over an untrusted path, compare `fingerprint`.
"""

import datetime
import functools
import re
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from edge_agent import cbor, cose
from edge_agent.cpython.signer import HostCrypto
from edge_agent.errors import CborError, ConfigError, CoseError, RemoteError
from gateway.files import read_private, write_private

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
ENDPOINT_MAX = 64  # bytes
CARD_MAX = 2048  # bytes
CARD_AAD = b"qis card"
CARD_TYPE = 65012


class CardError(RemoteError):
    """A card that is damaged, badly signed, or of somebody else than it says."""


class Peer(NamedTuple):
    """Another gateway. public: Ed25519, 32 bytes. certificate: PEM. endpoint: "host:port" or "".

    revoked_ms: None while trusted. rules: what it may ask for, as network.json has it.
    """

    gateway: bytes
    name: str
    public: bytes
    certificate: str
    endpoint: str
    revoked_ms: int | None
    rules: dict[str, Any]


def split_endpoint(text: object) -> tuple[str, int]:
    """("host", port) of "host:port" or "[v6]:port". ValueError for anything else."""
    if not isinstance(text, str):
        raise ValueError("no text")
    return _split(text)


@functools.lru_cache(maxsize=4096)
def _split(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or len(text.encode()) > ENDPOINT_MAX or (":" in bare) != (bare != host):
        raise ValueError(text)
    if not re.fullmatch(r"[A-Za-z0-9._:%-]+", bare) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ValueError(text)
    if not 1 <= int(port) <= 65535:
        raise ValueError(text)
    return bare, int(port)


def card_body(gateway: bytes, name: str, public: bytes, certificate: str, endpoint: str) -> bytes:
    """The payload of a card."""
    der = x509.load_pem_x509_certificate(certificate.encode()).public_bytes(
        serialization.Encoding.DER
    )
    body: dict[int, Any] = {1: gateway, 2: name, 3: public, 4: der}
    if endpoint:
        body[5] = endpoint
    return cbor.encode(body)


def fingerprint(public: bytes) -> str:
    """The first 16 bytes of SHA-256(public key), for people to compare."""
    digest = sha256(public).hexdigest()[:32]
    return " ".join(digest[i : i + 4] for i in range(0, 32, 4))


def read_card(data: bytes) -> Peer:
    """The gateway that a card is about; its signature and certificate are checked."""
    if len(data) > CARD_MAX:
        raise CardError("too-long", f"{len(data)} bytes")
    crypto = HostCrypto()
    try:
        message = cose.parse(data, 64)
        body = cbor.decode(message.payload, 2, 32)
    except CborError as error:
        raise CardError("not-cbor", error.reason)
    except CoseError as error:
        raise CardError("not-cose", error.reason)
    if not isinstance(body, dict) or message.protected.get(cose.HDR_TYP) != CARD_TYPE:
        raise CardError("bad-field", "no card")
    gateway, name, public, der, endpoint = (body.get(label) for label in (1, 2, 3, 4, 5))
    if not isinstance(gateway, bytes) or len(gateway) != 8:
        raise CardError("bad-field", "gateway")
    if not isinstance(public, bytes) or len(public) != 32:
        raise CardError("bad-field", "public key")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise CardError("bad-field", "name")
    try:
        cose.verify_sign1(crypto, public, message, CARD_AAD)
    except CoseError as error:
        raise CardError("bad-signature", error.reason)
    if message.protected.get(cose.HDR_KID) != gateway:
        raise CardError("bad-field", "kid")
    if endpoint is not None:
        try:
            split_endpoint(endpoint)
        except ValueError:
            raise CardError("bad-field", "endpoint")
    if not isinstance(der, bytes):
        raise CardError("bad-field", "certificate")
    try:
        certificate = x509.load_der_x509_certificate(der)
        check_certificate(certificate, public)
    except ValueError as error:
        raise CardError("bad-certificate", str(error))
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    return Peer(gateway, name, public, pem, endpoint if isinstance(endpoint, str) else "", None, {})


def make_identity(routing: Path, gateway: bytes, key: "Ed25519PrivateKey | None" = None) -> None:
    """Write gateway.key and gateway.crt, of a new key unless one is given."""
    key = key or Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edge-gateway " + gateway.hex())])
    now = datetime.datetime.now(datetime.UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A gateway's clock may be behind; the list of peers, not time, ends a certificate.
        .not_valid_before(now - datetime.timedelta(days=365))
        .not_valid_after(datetime.datetime(2099, 12, 31))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False
        )
        .sign(key, None)
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_private(routing / "gateway.crt", certificate.public_bytes(serialization.Encoding.PEM))
    write_private(routing / "gateway.key", pem, exclusive=True)


def load_seed(path: Path) -> bytes:
    try:
        key = serialization.load_pem_private_key(read_private(path), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError("is no Ed25519 key", str(path), "Restore it from your backup")
    return key.private_bytes_raw()


def check_certificate(certificate: x509.Certificate, public: bytes) -> None:
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey) or key.public_bytes_raw() != public:
        raise ValueError("of another key")
    try:
        certificate.verify_directly_issued_by(certificate)
    except Exception:
        raise ValueError("not signed by itself")


def load_certificate(path: Path, public: bytes) -> str:
    try:
        raw = path.read_bytes()
        check_certificate(x509.load_pem_x509_certificate(raw), public)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error), str(path), "Restore it together with gateway.key")
    return raw.decode()
