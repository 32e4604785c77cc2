"""Making a gateway's folder, and its TLS, from what can be found out.

Nothing is asked. The names of this machine are what it calls itself and what addresses it
has (`ca.found_names`); with TLS the inner port is the first that is free from 1883 on, so
that a broker which the system runs already is left alone; keys and ids are random. Whoever
knows better says so by an option. A folder that exists is never changed by `init`.
"""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_agent.errors import ConfigError, StoreError
from gateway import ca, enrol
from gateway.config import DEVICES, Domains, GatewayConfig, new_config, save_config
from gateway.keys import Registry, load_master, new_master
from gateway.store import Store


def port_free(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError:
            return False
    return True


def first_free(port: int, tries: int = 16, taken: Sequence[int] = ()) -> int:
    """The first free port from `port` on; `port` itself when there is none."""
    candidates = (p for p in range(port, port + tries) if p not in taken)
    return next((p for p in candidates if port_free(p)), port)


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(error.strerror or "cannot be made", str(folder), "Choose another folder")
    if (folder / "gateway.json").exists():
        raise StoreError("a gateway is here already", str(folder), "Choose another folder", 17)


def make_gateway(
    folder: Path,
    domains: Sequence[Path],
    now_ms: int,
    host: str = "127.0.0.1",
    port: int = 1883,
    root: str = "qis/1",
    tls: "dict[str, str] | None" = None,
    devices: "dict[str, Any] | None" = None,
) -> GatewayConfig:
    """Everything that a gateway starts with. tls, devices: as gateway.json has them."""
    make_folder(folder)
    for path in domains:
        if not path.is_file():
            raise ConfigError("no such file", str(path), "--domain names a domain file")
    config = new_config(folder, host, port, root, tls, devices)
    config.domains.mkdir(mode=0o700, exist_ok=True)
    for path in domains:
        (config.domains / path.name).write_bytes(path.read_bytes())
    Domains(config.domains)
    new_master(config.master)
    store = Store(config.database, now_ms=now_ms)
    store.set_meta("gateway", config.gateway)
    store.close()
    return config


def brokers_told(config: GatewayConfig) -> None:
    """Write the files of both brokers anew; a running mosquitto reads them."""
    store = Store(config.database)
    try:
        registry = Registry(store, load_master(config.master), config.gateway)
        enrol.tell_brokers(config, registry)
    finally:
        store.close()


def make_tls(
    config: GatewayConfig,
    names: Sequence[str] = (),
    own: "tuple[Path, Path, Path] | None" = None,
) -> list[str]:
    """Certificates for the names by which devices reach this gateway; these names.

    names: the first is what device.json will say; none: what `ca.found_names` finds.
    own: the owner's authority, certificate and key, instead of an authority made here.
    """
    folder = config.folder / "tls"
    if own is not None:
        given = ca.check_own(*own, list(names))
        ca.adopt(folder, *own)
        return given
    if not (folder / "ca.crt").exists():
        ca.make_authority(folder, config.gateway)
    wanted = list(dict.fromkeys([*map(ca.check_name, names), *ca.found_names()]))
    ca.issue(folder, wanted)
    return wanted


def add_tls(config: GatewayConfig, section: dict[str, Any]) -> GatewayConfig:
    """Put the section "devices" into gateway.json, or change it."""
    fields = dict(config.fields)
    fields["devices"] = {**DEVICES, **(fields.get("devices") or {}), **section}
    save_config(config, fields)
    return GatewayConfig(config.folder)


def tls_report(config: GatewayConfig) -> dict[str, Any]:
    """What a person wants to know about the certificates. No secret."""
    if config.devices is None:
        raise ConfigError(
            "devices do not use TLS here", str(config.path), "Run: edge-gateway tls --make"
        )
    server, authority = ca.load(config.devices.cert), ca.load(config.devices.ca)
    return {
        "host": config.devices.host,
        "port": config.devices.port,
        "names": ca.subject_names(server),
        "days_left": ca.days_left(server),
        "authority_days_left": ca.days_left(authority),
        "own_authority": (config.folder / "tls" / "ca.key").exists(),
        "fingerprint": ca.fingerprint(server).hex(),
        "authority": ca.fingerprint(authority).hex(),
    }
