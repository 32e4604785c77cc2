"""The folder of one gateway, as `edge-gateway init` makes it.

gateway.json     settings, with the gateway's own broker password; mode 0600
master.key       the secret that every device key comes from; mode 0600
gateway.db       the database
mailbox.db       what waits for devices; made anew when it is lost
domains/         domain files; every file here is loaded
codebooks/       codebook files, the same way (routing)
routing/         identity, peers and state of the routing process (gateway.network)
mosquitto/       mosquitto.conf, acl, passwd for a production broker
tls/             authority and certificate of `init --tls` (gateway.ca)
claims.db        codes for devices to come (gateway.claims)
broker.toml      for the embedded broker; holds passwords, mode 0600
status.json, metrics.prom   written by a running gateway
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain
from edge_agent.errors import ConfigError, EdgeError
from gateway.files import read_private, write_private

DEFAULTS: dict[str, Any] = {
    "root": "qis/1",
    "broker": {"host": "127.0.0.1", "port": 1883, "keepalive_s": 30, "tls": None},
    # A batch must not exceed what the broker sends without acknowledgement.
    "batch": 50,
    "batch_ms": 20,
    # Outcomes are deleted beyond these; 0 means no limit.
    "retention": {"megabytes": 4096, "days": 0},
    "metrics_s": 5,
}


DEVICES: dict[str, Any] = {
    "host": "",
    "port": 8883,
    "listen": "",
    "claim_port": 8884,
    "ca": "tls/ca.crt",
    "cert": "tls/server.crt",
    "key": "tls/server.key",
}


class Devices(NamedTuple):
    """The section "devices": how devices reach the broker, over TLS; None when they do not.

    host: a name or address of this machine as devices know it. listen: the address to listen
    on, "" for all. claim_port: where a device redeems its code. ca, cert, key: PEM files.
    """

    host: str
    port: int
    listen: str
    claim_port: int
    ca: Path
    cert: Path
    key: Path


class GatewayConfig:
    """Checked settings of one folder. `repr` shows no secret."""

    def __init__(self, folder: "Path | str") -> None:
        self.folder = Path(folder)
        path = self.folder / "gateway.json"
        if not path.exists():
            raise ConfigError(
                "no gateway here", str(self.folder), f"Run: edge-gateway init {self.folder}"
            )
        try:
            fields = json.loads(read_private(path))
        except ValueError as error:
            raise ConfigError(f"not JSON ({error})", str(path), "Check commas and quotes")
        if not isinstance(fields, dict):
            raise ConfigError("not a JSON object", str(path), "It starts with { and ends with }")
        self.path = path
        self.fields = fields
        known = set(DEFAULTS) | {"gateway", "password", "routing", "devices"}
        for name in fields:
            if name not in known:
                raise ConfigError("unknown field", f"{path}: {name}", f"Known: {sorted(known)}")
        try:
            self.gateway = bytes.fromhex(fields["gateway"])
        except (KeyError, ValueError, TypeError):
            raise ConfigError("missing or not hex", f"{path}: gateway", "Write 16 hex digits")
        self.root = self._text(fields, "root", DEFAULTS["root"])
        if any(c in self.root for c in "+#\x00") or "" in self.root.split("/"):
            raise ConfigError(f"{self.root!r}", f"{path}: root", "Write topic levels like qis/1")
        broker = dict(DEFAULTS["broker"], **self._section(fields, "broker"))
        self.host = self._text(broker, "host", "", "broker.")
        self.port = self._int(broker, "port", 1, 65535, "broker.")
        self.keepalive_s = self._int(broker, "keepalive_s", 1, 65535, "broker.")
        tls: dict[str, str] | None = broker.get("tls")
        self.tls = tls and {name: str(self.folder / value) for name, value in tls.items()}
        self.user = "gateway-" + self.gateway.hex()
        self.operator = "operator-" + self.gateway.hex()
        self.password = self._text(fields, "password", "")
        merged = dict(DEFAULTS, **fields)
        self.batch = self._int(merged, "batch", 1, 1000)
        self.batch_ms = self._int(merged, "batch_ms", 0, 60_000)
        self.metrics_s = self._int(merged, "metrics_s", 1, 3600)
        retention = dict(DEFAULTS["retention"], **self._section(fields, "retention"))
        self.keep_bytes = self._int(retention, "megabytes", 0, 1 << 30, "retention.") << 20
        self.keep_days = self._int(retention, "days", 0, 36_500, "retention.")
        self.devices = self._devices(fields)
        self.routing = self._section(fields, "routing")  # checked by gateway.routing_config

    def __repr__(self) -> str:
        return f"GatewayConfig({self.folder}, gateway={self.gateway.hex()})"

    def _section(self, fields: dict[str, Any], name: str) -> dict[str, Any]:
        value = fields.get(name, {})
        if not isinstance(value, dict):
            raise ConfigError("not an object", f"{self.path}: {name}", "Write {...}")
        for key in value if name in DEFAULTS else ():
            if key not in DEFAULTS[name]:
                raise ConfigError(
                    "unknown field",
                    f"{self.path}: {name}.{key}",
                    f"Known: {sorted(DEFAULTS[name])}",
                )
        return value

    def _devices(self, fields: dict[str, Any]) -> Devices | None:
        if fields.get("devices") is None:
            return None
        section = self._section(fields, "devices")
        for key in section:
            if key not in DEVICES:
                raise ConfigError(
                    "unknown field", f"{self.path}: devices.{key}", f"Known: {sorted(DEVICES)}"
                )
        merged, where = {**DEVICES, **section}, "devices."
        if not isinstance(merged["listen"], str):
            raise ConfigError("not a text", f"{self.path}: devices.listen", 'Write "" for all')
        return Devices(
            self._text(merged, "host", "", where),
            self._int(merged, "port", 1, 65535, where),
            merged["listen"],
            self._int(merged, "claim_port", 1, 65535, where),
            *(self.folder / self._text(merged, name, "", where) for name in ("ca", "cert", "key")),
        )

    def _text(self, fields: dict[str, Any], name: str, default: str, where: str = "") -> str:
        value = fields.get(name, default)
        if not isinstance(value, str) or not value:
            raise ConfigError("not a text", f"{self.path}: {where}{name}", "Write a text in quotes")
        return value

    def _int(self, fields: dict[str, Any], name: str, low: int, high: int, where: str = "") -> int:
        value = fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(
                f"{value!r} is not allowed",
                f"{self.path}: {where}{name}",
                f"Write a whole number {low}..{high}",
            )
        return value

    @property
    def database(self) -> Path:
        return self.folder / "gateway.db"

    @property
    def master(self) -> Path:
        return self.folder / "master.key"

    @property
    def domains(self) -> Path:
        return self.folder / "domains"

    @property
    def broker_toml(self) -> Path:
        return self.folder / "broker.toml"

    @property
    def mosquitto(self) -> Path:
        return self.folder / "mosquitto"


def new_config(
    folder: Path,
    host: str,
    port: int,
    root: str,
    tls: dict[str, str] | None,
    devices: "dict[str, Any] | None" = None,
) -> GatewayConfig:
    """Write gateway.json with a fresh gateway id and a random broker password."""
    fields = dict(DEFAULTS)
    fields["gateway"] = os.urandom(8).hex()
    fields["password"] = os.urandom(16).hex()
    fields["root"] = root
    fields["broker"] = dict(DEFAULTS["broker"], host=host, port=port, tls=tls)
    if devices is not None:
        fields["devices"] = {**DEVICES, **devices}
    write_private(folder / "gateway.json", json.dumps(fields, indent=2) + "\n", exclusive=True)
    return GatewayConfig(folder)


def save_config(config: GatewayConfig, fields: dict[str, Any]) -> None:
    """Replace gateway.json. The caller reads it again, which checks it."""
    write_private(config.path, json.dumps(fields, indent=2) + "\n")


class Domains(dict[bytes, Domain]):
    """The domain files of a folder, by id. Signatures are checked when loading."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._crypto = HostCrypto()
        self._stamp: list[tuple[str, int, int]] = []
        self.refresh()

    def refresh(self) -> bool:
        """Read the folder again if it changed; True when something is new."""
        try:
            files = sorted(p for p in self.folder.iterdir() if p.is_file())
            stamp = [(p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in files]
        except OSError:
            return False
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        for path in files:
            if path.name.startswith("."):
                continue
            try:
                domain = Domain.load(path.read_bytes(), self._crypto, verify=True)
            except (EdgeError, OSError) as error:
                raise ConfigError(
                    f"not a domain file ({error})", str(path), "Remove it or copy it again"
                )
            held = self.get(domain.id)
            if held is None or domain.version > held.version:
                self[domain.id] = domain
        return True
