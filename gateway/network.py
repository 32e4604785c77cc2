"""Who belongs to the routing network: this gateway's identity, its peers, the shared key.

Folder `routing/` of a gateway:

gateway.key   Ed25519 private key, PEM, mode 0600: signs pointers, requests and answers
gateway.crt   self-signed certificate of that key, for TLS 1.3
network.json  mode 0600: name, network id, network key, sketch kind, seeds, endpoint, peers

Nobody is trusted who is not in `peers`. There is no authority: each gateway hands out its
*card* (id, name, key, certificate, endpoint, signed by that key), and each owner adds the
cards of the gateways that he wants to hear. Adding a card binds the gateway id to one key
for ever; another key under that id is refused. Revoking a peer leaves it in the list, so
that what it signs is known for what it is, and cannot be added again by mistake.

The network key is a secret of all members. It seals pointers against whoever stores them
(DHT nodes, a shared folder), not against members: what a member says is believed only as
far as its own signature goes. It travels in a file of mode 0600 (`network share`, then
`network init --join`), and is never printed. A network without a key is readable by
anyone, and so defaults to the sketch that tells least.

A certificate is not checked against a name or an authority: a client loads exactly the
certificate of the peer it wants to reach, and nothing else.
"""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography import x509

from edge_agent import cose
from edge_agent.cpython.signer import HostCrypto
from edge_agent.errors import ConfigError, StoreError
from gateway.cards import (
    CARD_AAD,
    CARD_TYPE,
    NAME,
    CardError,
    Peer,
    card_body,
    check_certificate,
    load_certificate,
    load_seed,
    make_identity,
    read_card,
    split_endpoint,
)
from gateway.config import GatewayConfig
from gateway.files import read_private, write_private

SKETCHES = ("int4x64", "sign256", "int8")
PEERS_MAX = 4096
_FIELDS = {"name", "network", "key", "sketch", "seeds", "endpoint", "peers"}
_PEER_FIELDS = {"gateway", "name", "public", "certificate", "endpoint", "revoked_ms", "rules"}

NO_NETWORK = "Run: edge-gateway network init NAME"


class Network:
    """One gateway's view of its network. `repr` shows no secret."""

    def __init__(self, folder: Path, gateway: bytes) -> None:
        self.folder = folder
        self.gateway = gateway
        self.crypto = HostCrypto()
        self.seed = load_seed(folder / "gateway.key")
        self.public = self.crypto.public_key(self.seed)
        self.certificate = load_certificate(folder / "gateway.crt", self.public)
        self._stamp = (0, 0, 0)
        self._peers: dict[bytes, Peer] = {}
        self.refresh()

    @staticmethod
    def load(folder: "Path | str") -> "Network":
        """The network of a gateway's folder. ConfigError names what is missing or wrong."""
        config = GatewayConfig(folder)
        routing = config.folder / "routing"
        if not (routing / "network.json").exists():
            raise ConfigError("no network here", str(routing), NO_NETWORK)
        return Network(routing, config.gateway)

    def __repr__(self) -> str:
        return f"Network({self.name}, gateway={self.gateway.hex()}, peers={len(self._peers)})"

    def refresh(self) -> bool:
        """Read network.json again if it changed; True when it did.

        ConfigError when the file is wrong; what was read before stays in force.
        """
        path = self.folder / "network.json"
        try:
            stat = path.stat()
        except OSError:
            raise ConfigError("cannot be read", str(path), "Restore it, or init the network again")
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if stamp == self._stamp:
            return False
        read = _read(path)
        self.name: str = read["name"]
        self.network: int = read["network"]
        self.key: bytes = bytes.fromhex(read["key"])
        self.sketch: str = read["sketch"]
        self.seeds: list[tuple[str, int]] = [split_endpoint(text) for text in read["seeds"]]
        self.endpoint: str = read["endpoint"]
        self._peers = {
            gateway: peer for gateway, peer in read["peers"].items() if gateway != self.gateway
        }
        self._stamp = stamp
        return True

    def peers(self) -> list[Peer]:
        """All of them, the revoked too, by name."""
        return sorted(self._peers.values(), key=lambda peer: peer.name)

    def peer(self, gateway: bytes) -> Peer | None:
        """The peer of that id, revoked or not; None for strangers and for this gateway."""
        return self._peers.get(gateway)

    def find(self, text: str) -> Peer:
        """A peer by name, or by the first digits of its id."""
        for peer in self._peers.values():
            if peer.name == text:
                return peer
        found = [p for p in self._peers.values() if text and p.gateway.hex().startswith(text)]
        if len(found) != 1:
            raise ConfigError(
                "no such peer" if not found else "several peers", text, "See: network show"
            )
        return found[0]

    def revoked(self, gateway: bytes) -> bool:
        peer = self._peers.get(gateway)
        return peer is not None and peer.revoked_ms is not None

    def public_key(self, gateway: bytes) -> bytes | None:
        """The key of a trusted gateway, of this one too; None for strangers and revoked."""
        if gateway == self.gateway:
            return self.public
        peer = self._peers.get(gateway)
        return peer.public if peer is not None and peer.revoked_ms is None else None

    def members(self) -> int:
        """Trusted gateways, this one included."""
        return 1 + sum(peer.revoked_ms is None for peer in self._peers.values())

    def sign(self, payload: bytes, aad: bytes, content_type: "int | None" = None) -> bytes:
        """A tagged COSE_Sign1 by this gateway; kid is its id."""
        header: dict[int, Any] = {cose.HDR_ALG: cose.ALG_EDDSA, cose.HDR_KID: self.gateway}
        if content_type is not None:
            header[cose.HDR_TYP] = content_type
        return cose.sign1(self.crypto, self.seed, header, payload, aad)

    def card(self, name: str, endpoint: str = "") -> bytes:
        """What other owners add: signed id, name, key, certificate and endpoint."""
        body = card_body(self.gateway, name, self.public, self.certificate, endpoint)
        return self.sign(body, CARD_AAD, CARD_TYPE)

    # -- changes ----------------------------------------------------------------------

    def add(self, card: bytes, name: str = "") -> Peer:
        """Trust the gateway of a card; a known one gets its new certificate and endpoint.

        CardError for a bad card; StoreError when the id has another key, is revoked, or
        the name is taken.
        """
        new = read_card(card)
        if new.gateway == self.gateway:
            raise CardError("own-card", "a gateway needs no card of itself")
        new = new._replace(name=name or new.name)
        if not NAME.fullmatch(new.name):
            raise ConfigError(
                f"{new.name!r} is not allowed", "name", "Write letters, digits, . _ -, at most 32"
            )
        with self._changing() as fields:
            for entry in fields["peers"]:
                if entry["gateway"] == new.gateway.hex():
                    self._check_known(entry, new)
                    new = new._replace(name=name or entry["name"], rules=entry.get("rules", {}))
            others = [p for p in fields["peers"] if p["gateway"] != new.gateway.hex()]
            if any(entry["name"] == new.name for entry in others):
                raise StoreError("the name is taken", new.name, "Choose another with --name", 17)
            if len(others) >= PEERS_MAX:
                raise StoreError(f"holds {PEERS_MAX} peers already", str(self.folder), "", 28)
            fields["peers"] = [*others, _entry(new)]
        return new

    def _check_known(self, entry: dict[str, Any], new: Peer) -> None:
        if entry["public"] != new.public.hex():
            raise StoreError(
                "is known with another key",
                new.gateway.hex(),
                "Ask its owner. If the gateway was made anew, it needs a new id as well",
                17,
            )
        if entry.get("revoked_ms") is not None:
            raise StoreError(
                "is revoked", new.gateway.hex(), "Its owner sets up a gateway with a new id", 17
            )

    def revoke(self, peer: Peer, now_ms: int) -> None:
        """Believe nothing more of this peer."""
        with self._changing() as fields:
            for entry in fields["peers"]:
                if entry["gateway"] == peer.gateway.hex():
                    entry.setdefault("revoked_ms", now_ms)

    def set_rules(self, peer: Peer, rules: dict[str, Any]) -> None:
        with self._changing() as fields:
            for entry in fields["peers"]:
                if entry["gateway"] == peer.gateway.hex():
                    entry["rules"] = rules

    def set_endpoint(self, endpoint: str) -> None:
        """Where this gateway answers; pointers and cards say so."""
        split_endpoint(endpoint)
        with self._changing() as fields:
            fields["endpoint"] = endpoint

    def rekey(self, key: bytes) -> None:
        """Put another network key in force; members who do not get it are shut out.

        What was announced under the old key is found by nobody who has the new one, until it
        is announced again.
        """
        if len(key) != 32:
            raise ConfigError(f"{len(key)} bytes", "key", "32 are needed")
        with self._changing() as fields:
            fields["key"] = key.hex()

    def share(self, path: Path, key: "bytes | None" = None) -> None:
        """Write what a new member needs, the network key included, to a file of mode 0600.

        key: one that is to be put in force next.
        """
        fields: dict[str, Any] = {
            "name": self.name,
            "network": self.network,
            "key": (self.key if key is None else key).hex(),
            "sketch": self.sketch,
            "seeds": [join_endpoint(host, port) for host, port in self.seeds],
        }
        write_private(path, json.dumps(fields, indent=2) + "\n", exclusive=True)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """The fields of network.json to change; written when the block ends well."""
        path = self.folder / "network.json"
        fd = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            fields = json.loads(read_private(path))
            yield fields
            write_private(path, json.dumps(fields, indent=2) + "\n")
        finally:
            os.close(fd)
        self.refresh()


def create(
    folder: "Path | str",
    name: str,
    key: bytes = b"",
    network: "int | None" = None,
    sketch: str = "",
    seeds: "list[str] | None" = None,
    endpoint: str = "",
) -> Network:
    """Make `routing/` in a gateway's folder. StoreError when there is one already.

    key: 32 bytes shared by the members, b"" for an open network.  network: the id on the
    wire; by default it follows from name and key, so that equal ones meet.
    """
    config = GatewayConfig(folder)
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not allowed", "name", "Write letters, digits, . _ -, at most 32"
        )
    if network is None:
        digest = HostCrypto().hmac_sha256(key or bytes(32), b"qis1 network" + name.encode())
        network = int.from_bytes(digest[:4], "big")
    fields = {
        "name": name,
        "network": network,
        "key": key.hex(),
        # Without a key anyone may read the sketches: then the one that tells least.
        "sketch": sketch or ("int4x64" if key else "sign256"),
        "seeds": seeds or [],
        "endpoint": endpoint,
        "peers": [],
    }
    _check(fields, "network.json")
    routing = config.folder / "routing"
    path = routing / "network.json"
    if path.exists():
        raise StoreError("is there already", str(path), "One gateway is in one network", 17)
    routing.mkdir(mode=0o700, exist_ok=True)
    if not (routing / "gateway.key").exists():
        make_identity(routing, config.gateway)
    write_private(path, json.dumps(fields, indent=2) + "\n", exclusive=True)
    return Network(routing, config.gateway)


def shared_key(file: Path, name: str) -> bytes:
    """The network key in a file that `share` wrote for the network `name`."""
    fields = dict(_json(file), endpoint="", peers=[])
    _check(fields, str(file))
    if fields["name"] != name or not fields["key"]:
        raise ConfigError(f"holds no key of network {name}", str(file), "Ask its owner for another")
    return bytes.fromhex(fields["key"])


def join(folder: "Path | str", file: Path, endpoint: str = "") -> Network:
    """Make `routing/` from a file that `share` wrote."""
    fields = dict(_json(file), endpoint=endpoint, peers=[])
    _check(fields, str(file))
    return create(
        folder,
        fields["name"],
        bytes.fromhex(fields["key"]),
        fields["network"],
        fields["sketch"],
        fields["seeds"],
        endpoint,
    )


# -- files --------------------------------------------------------------------------


def join_endpoint(host: str, port: int) -> str:
    """ "host:port", with brackets where the host needs them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _entry(peer: Peer) -> dict[str, Any]:
    return {
        "gateway": peer.gateway.hex(),
        "name": peer.name,
        "public": peer.public.hex(),
        "certificate": peer.certificate,
        "endpoint": peer.endpoint,
        "rules": peer.rules,
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(read_private(path))
    except ValueError as error:
        raise ConfigError(f"not JSON ({error})", str(path), "Check commas and quotes")
    if not isinstance(fields, dict):
        raise ConfigError("not a JSON object", str(path), "It starts with { and ends with }")
    return fields


def _read(path: Path) -> dict[str, Any]:
    """The checked fields; `peers` as {gateway: Peer}."""
    fields = _json(path)
    _check(fields, str(path))
    peers: dict[bytes, Peer] = {}
    for i, entry in enumerate(fields["peers"]):
        peer = _peer(entry, f"{path}: peers[{i}]")
        if peer.gateway in peers:
            raise ConfigError("named twice", f"{path}: peers[{i}].gateway", "Remove one")
        peers[peer.gateway] = peer
    return dict(fields, peers=peers)


def _check(fields: dict[str, Any], where: str) -> None:
    for name in fields:
        if name not in _FIELDS:
            raise ConfigError("unknown field", f"{where}: {name}", f"Known: {sorted(_FIELDS)}")

    def want(good: bool, name: str, fix: str) -> None:
        if not good:
            raise ConfigError("missing or not allowed", f"{where}: {name}", fix)

    def text(name: str) -> str:
        value = fields.get(name)
        return value if isinstance(value, str) else "?"

    want(bool(NAME.fullmatch(text("name"))), "name", "Write letters, digits, . _ -, at most 32")
    number = fields.get("network")
    want(
        isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 32,
        "network",
        "Write a whole number below 2^32",
    )
    want(bool(re.fullmatch("([0-9a-f]{64})?", text("key"))), "key", "Write 64 hex digits or none")
    want(text("sketch") in SKETCHES, "sketch", f"One of {', '.join(SKETCHES)}")
    want(isinstance(fields.get("peers"), list), "peers", "Write [...]")
    seeds = fields.get("seeds")
    want(isinstance(seeds, list) and len(seeds) <= 64, "seeds", 'Write ["host:port", ...]')
    assert isinstance(seeds, list)
    want(isinstance(fields.get("endpoint"), str), "endpoint", 'Write "host:port" or ""')
    for value in [*seeds, *([fields["endpoint"]] if fields["endpoint"] else [])]:
        try:
            split_endpoint(value)
        except ValueError:
            want(False, "seeds" if value in seeds else "endpoint", "Write host:port")


def _peer(entry: Any, where: str) -> Peer:
    try:
        unknown = set(entry) - _PEER_FIELDS
        gateway, public = bytes.fromhex(entry["gateway"]), bytes.fromhex(entry["public"])
        name, certificate, endpoint = entry["name"], entry["certificate"], entry["endpoint"]
        rules, revoked = entry.get("rules", {}), entry.get("revoked_ms")
        if len(gateway) != 8 or len(public) != 32 or not NAME.fullmatch(name):
            raise ValueError("gateway, public or name")
        if unknown or not isinstance(rules, dict) or not isinstance(revoked, int | None):
            raise ValueError("unknown field, rules or revoked_ms")
        if endpoint:
            split_endpoint(endpoint)
        check_certificate(x509.load_pem_x509_certificate(certificate.encode()), public)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"is damaged ({error})", where, "Remove it and add the card again")
    return Peer(gateway, name, public, certificate, endpoint, revoked, rules)
