"""What a DHT node is told, and who it is.

The state folder belongs to one node on one machine:

    node.json    its id, a secret, the port it had last; mode 0600
    peers.json   addresses of others that it knew last, to find them again without a seed
    node.lock    held (flock) by the process that runs the node

The id places the node in the key space and stays the same over restarts, so that the
others find it where it was. Two nodes with one id would take each other's place: the lock
refuses the second on one machine, and `gateway.dht_canary` finds a copied folder on
another.
"""

import fcntl
import json
import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.errors import ConfigError, LocalError
from gateway.files import read_private, write_private

ID_SIZE = 20
SECRET_SIZE = 32
SEEDS_ADVISED = 4
SEEDS_MAX = 64
PEERS_KEPT = 16
# The engine takes what it put last for lost after this long; it says so again before.
EXPIRE_S = 2 * 3600
CANARY_S = 120
EXPIRE_LEAST_S, EXPIRE_MOST_S = 15, 7 * 86400

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
_FIELDS = ("state", "network", "host", "port", "seeds", "expire_s", "canary_s")


class Refused(LocalError):
    """The node cannot run as it is set up. `reason` is a short token for counters."""

    def __init__(self, reason: str, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.reason = reason


class Identity(NamedTuple):
    """id: 20 bytes.  secret: 32 bytes, proves withdrawals (`gateway.dht_value`).  port: last."""

    id: bytes
    secret: bytes
    port: int

    def __repr__(self) -> str:
        return f"Identity({self.id.hex()}, port={self.port})"


class Settings(NamedTuple):
    """state: folder.  network: id, 1 to 2^32-1, keeps networks apart; no secret.
    host: IPv4 address to bind.  port: 0 for the last one, or any that is free.
    seeds: (host, port) of nodes to begin with; the same ones in every node of a network.
    expire_s: how long others keep a value whose owner went silent.
    canary_s: pause between two looks at what others announced (`gateway.dht_canary`)."""

    state: Path
    network: int
    host: str
    port: int
    seeds: tuple[tuple[str, int], ...]
    expire_s: int
    canary_s: int

    def text(self) -> str:
        fields = self._asdict() | {"state": str(self.state)}
        fields["seeds"] = [f"{host}:{port}" for host, port in self.seeds]
        return json.dumps(fields)


def settings(
    state: "Path | str",
    network: int,
    host: str = "0.0.0.0",  # noqa: S104 - a node is there for others
    port: int = 0,
    seeds: Iterable[str] = (),
    expire_s: int = EXPIRE_S,
    canary_s: int = CANARY_S,
) -> Settings:
    """Checked settings. Refused("bad-config" or "bad-seeds") names the field."""
    for name, value in (("port", port), ("expire_s", expire_s), ("canary_s", canary_s)):
        if type(value) is not int:
            raise Refused("bad-config", f"{value!r}", name, "Write a whole number")
    if type(network) is not int or not 0 < network < 1 << 32:
        raise Refused("bad-config", f"{network!r}", "network", "Write 1 to 4294967295")
    if not 0 <= port < 65536:
        raise Refused("bad-config", f"{port!r}", "port", "Write 1 to 65535, or 0 for any")
    if not EXPIRE_LEAST_S <= expire_s <= EXPIRE_MOST_S:
        raise Refused(
            "bad-config", f"{expire_s!r}", "expire_s",
            f"Write {EXPIRE_LEAST_S} to {EXPIRE_MOST_S} seconds",
        )  # fmt: skip
    if not 1 <= canary_s <= 240:
        raise Refused("bad-config", f"{canary_s!r}", "canary_s", "Write 1 to 240 seconds")
    try:
        socket.inet_aton(host)
    except (OSError, TypeError):
        raise Refused("bad-config", f"{host!r}", "host", "Write an IPv4 address to bind")
    return Settings(Path(state), network, host, port, parse_seeds(seeds), expire_s, canary_s)


def parse_seeds(seeds: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """("host:port", ...) -> ((host, port), ...), repeated ones once. Refused("bad-seeds")."""
    found: dict[tuple[str, int], None] = {}
    if isinstance(seeds, str):
        raise Refused("bad-seeds", f"{seeds!r}", "seeds", 'Write a list like ["10.0.0.1:4222"]')
    for seed in seeds:
        host, colon, digits = seed.rpartition(":") if isinstance(seed, str) else ("", "", "")
        good = colon and _HOST.fullmatch(host) and digits.isdecimal() and digits.isascii()
        if not good or not 0 < int(digits[:6]) < 65536:
            raise Refused("bad-seeds", f"{seed!r}", "seeds", "Write host:port, e.g. 10.0.0.1:4222")
        found[host, int(digits)] = None
    if len(found) > SEEDS_MAX:
        raise Refused("bad-seeds", f"{len(found)} seeds", "seeds", f"{SEEDS_MAX} are enough")
    return tuple(found)


def load(path: Path) -> Settings:
    """Settings from a JSON file, for a node that runs by itself. Refused."""
    try:
        fields: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Refused("bad-config", str(error), str(path), "Give a JSON file that can be read")
    if not isinstance(fields, dict) or not {"state", "network"} <= fields.keys():
        raise Refused("bad-config", "state or network is missing", str(path), "Both are needed")
    unknown = fields.keys() - set(_FIELDS)
    if unknown:
        raise Refused(
            "bad-config", f"unknown field {sorted(unknown)[0]}", str(path), f"Known: {_FIELDS}"
        )
    return settings(**fields)


def identity(state: Path) -> Identity:
    """Who the node of this folder is; made at the first call. Refused("bad-config")."""
    path = state / "node.json"
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            keep(state, Identity(os.urandom(ID_SIZE), os.urandom(SECRET_SIZE), 0))
        fields = json.loads(read_private(path))
        found = Identity(
            bytes.fromhex(fields["id"]), bytes.fromhex(fields["secret"]), int(fields["port"])
        )
        if len(found.id) != ID_SIZE or len(found.secret) != SECRET_SIZE:
            raise ValueError("a field has the wrong size")
        if not 0 <= found.port < 65536:
            raise ValueError("port")
    except ConfigError as error:
        raise Refused("bad-config", error.what, error.where, error.fix)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused("bad-config", str(error), str(path), "Remove the file: a new id is made")
    return found


def keep(state: Path, who: Identity) -> None:
    fields = {"id": who.id.hex(), "secret": who.secret.hex(), "port": who.port}
    write_private(state / "node.json", json.dumps(fields))


def peers(state: Path) -> tuple[tuple[str, int], ...]:
    """Addresses that were kept; what cannot be read is as good as none."""
    try:
        return parse_seeds(json.loads((state / "peers.json").read_text())[:PEERS_KEPT])
    except (OSError, ValueError, TypeError, Refused):
        return ()


def keep_peers(state: Path, addresses: "list[str]") -> None:
    write_private(state / "peers.json", json.dumps(addresses[:PEERS_KEPT]))


def lock(state: Path) -> int:
    """Hold the folder until the returned descriptor is closed. Refused("identity-in-use")."""
    fd = os.open(state / "node.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Refused(
            "identity-in-use",
            "another process runs the DHT node of this folder",
            str(state),
            "End the other one, or give each its own folder",
        )
    return fd


def free_port(host: str, port: int) -> None:
    """Refused("port-in-use") when nothing can listen there: the engine would abort."""
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        probe.bind((host, port))
    except OSError as error:
        raise Refused(
            "port-in-use",
            error.strerror or str(error),
            f"{host}:{port}",
            "Free this UDP port, or name another (0: any)",
        )
    finally:
        probe.close()
