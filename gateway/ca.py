"""The certificates of one gateway: an authority of its own, or what its owner brings.

`tls/` of a gateway's folder:

ca.crt      what devices trust; no secret
ca.key      mode 0600; absent when the owner brought a certificate of another authority
server.crt  the broker's certificate, and that of the claim listener; behind it its authority
server.key  mode 0600

The authority signs for this gateway alone, so what a device trusts is one gateway. Nobody
asks for certificates of devices: a device proves itself by a password of 128 random bits and
by the MAC of every frame, and both end with `edge-gateway revoke`; a client certificate would
be a third secret that ends at no other time. Keys are on P-256, which mbedTLS on boards has.

A clock may be behind on a machine without a battery: certificates begin a year early. The
authority lasts 30 years, a server certificate five; `edge-gateway tls` says how long it still
has and `edge-gateway tls --renew` makes the next one, under which devices that trust the
authority go on. Those that pin the certificate itself (boards that know no date) need the
new fingerprint.
"""

import datetime
import hashlib
import ipaddress
import re
import socket
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge_agent.errors import ConfigError
from gateway.files import read_private, write_private

CA_DAYS, SERVER_DAYS, EARLY_DAYS = 30 * 365, 5 * 365, 365
WARN_DAYS = 60
PIN_BYTES = 16
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def found_names() -> list[str]:
    """How devices may reach this machine: its names and addresses, the best first."""
    host = socket.gethostname().partition(".")[0]
    names = [socket.getfqdn()] if "." in socket.getfqdn().rstrip(".") else []
    addresses = _addresses()
    # With a responder, NAME.local follows the machine when its address changes.
    local = [host + ".local"] if NAME.fullmatch(host) else []
    ordered = local + addresses if Path("/run/avahi-daemon/socket").exists() else addresses + local
    names = ordered + names + [host, "localhost", "127.0.0.1"]
    return [n for n in dict.fromkeys(names) if NAME.fullmatch(n) or ":" in n]


def _addresses() -> list[str]:
    """Addresses that others can reach: version 4 first, that of the default route at its head."""
    try:
        text = Path("/proc/net/fib_trie").read_text()
    except OSError:
        text = ""
    found = [*_routed(socket.AF_INET, "192.0.2.1")]
    found += re.findall(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL", text)
    found += _routed(socket.AF_INET6, "2001:db8::1")
    return [
        a
        for a in dict.fromkeys(found)
        if not (ip := ipaddress.ip_address(a)).is_loopback and not ip.is_link_local
    ]


def _routed(family: int, target: str) -> list[str]:
    """The address that would be used towards the outside."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((target, 9))  # sends nothing
            return [sock.getsockname()[0]]
    except OSError:
        return []


def check_name(name: str) -> str:
    """A host name or an address. ConfigError for anything else."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        if NAME.fullmatch(name):
            return name
    raise ConfigError(f"{name!r} is no host name", "--name", "Write for example pi.local")


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(subject: str, days: int, public: Any, issuer: "x509.Name | None") -> Any:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject[:64])])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer or name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=EARLY_DAYS))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs,
        content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def make_authority(folder: Path, gateway: bytes) -> None:
    """ca.crt and ca.key in `folder`, which is made; never replaces an authority."""
    folder.mkdir(mode=0o700, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(f"edge-gateway {gateway.hex()}", CA_DAYS, key.public_key(), None)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_private(folder / "ca.key", _private(key), exclusive=True)
    write_private(folder / "ca.crt", _pem(certificate))


def issue(folder: Path, names: list[str], days: int = SERVER_DAYS) -> None:
    """A new key and certificate for the server of that name, signed by `folder`'s authority."""
    path = folder / "ca.key"
    if not path.exists():
        raise ConfigError(
            "the authority's key is not here", str(path), "Ask the authority for a certificate"
        )
    try:
        authority = serialization.load_pem_private_key(read_private(path), None)
    except (ValueError, TypeError):
        raise ConfigError("is no private key", str(path), "Restore it from your backup")
    if not isinstance(authority, ec.EllipticCurvePrivateKey):
        raise ConfigError("is no P-256 key", str(path), "Restore it from your backup")
    signer = load(folder / "ca.crt")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(names[0], days, key.public_key(), signer.subject)
        .add_extension(x509.SubjectAlternativeName([_alternative(n) for n in names]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False
        )
        .sign(authority, hashes.SHA256())
    )
    write_private(folder / "server.key", _private(key))
    write_private(folder / "server.crt", _pem(certificate) + _pem(signer))


def check_own(ca: Path, certificate: Path, key: Path, names: list[str]) -> list[str]:
    """An owner's files belong together and are for all of `names`, or for what is returned."""
    signer, mine = load(ca), load(certificate)
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), None)
    except OSError as error:
        raise ConfigError(error.strerror or str(error), str(key), "Name the key's PEM file")
    except (ValueError, TypeError):
        raise ConfigError("is no private key without a password", str(key), "Decrypt it first")
    if private.public_key() != mine.public_key():
        raise ConfigError("is not the key of the certificate", str(key), "Give the two as a pair")
    try:
        mine.verify_directly_issued_by(signer)
    except Exception:
        raise ConfigError("did not sign the certificate", str(ca), "Give the authority that did")
    for one, path in ((signer, ca), (mine, certificate)):
        if days_left(one) < 0:
            raise ConfigError("has expired", str(path), "Get a new one")
    known = subject_names(mine)
    missing = [name for name in names if name not in known]
    if missing or not known:
        wanted = missing[0] if missing else "any name"
        raise ConfigError(
            f"is not for {wanted} but for {', '.join(known) or 'nobody'}",
            str(certificate),
            "Devices compare the name: give one of these with --name",
        )
    return names or known[:1]


def adopt(folder: Path, ca: Path, certificate: Path, key: Path) -> None:
    """Take an owner's files, which `check_own` has seen."""
    folder.mkdir(mode=0o700, exist_ok=True)
    write_private(folder / "ca.crt", _pem(load(ca)))
    write_private(folder / "server.key", key.read_bytes())
    write_private(folder / "server.crt", certificate.read_bytes())


def load(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file. ConfigError."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(error.strerror or str(error), str(path), "Name a PEM file")
    except ValueError as error:
        raise ConfigError(f"is no certificate ({error})", str(path), "Name a PEM file")


def subject_names(certificate: x509.Certificate) -> list[str]:
    """The names and addresses it is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    names = list(found.get_values_for_type(x509.DNSName))
    return names + [str(a) for a in found.get_values_for_type(x509.IPAddress)]


def days_left(certificate: x509.Certificate) -> int:
    """Until it expires, rounded down; negative when it has."""
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left.days


def lasts(path: Path) -> int | None:
    """Days that a certificate still has; None when it cannot be read."""
    try:
        return days_left(load(path))
    except ConfigError:
        return None


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the whole certificate: what `tls.fingerprint` of a device pins."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()


def pin(authority: x509.Certificate) -> bytes:
    """What a claim code says of the authority."""
    return fingerprint(authority)[:PIN_BYTES]
