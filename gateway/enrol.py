"""Taking devices in: the file a device starts with, new keys, and goodbye.

`enrol` writes the configuration that `edge-agent run --config` reads. It holds the
device's key, so it is made with mode 0600 and never printed. The broker's credentials
follow at once.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from edge_agent.errors import ConfigError, StoreError
from gateway import broker, ca, mosquitto
from gateway.config import GatewayConfig
from gateway.files import write_private
from gateway.keys import Device, Registry

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def parse_agent(text: str) -> bytes:
    """An agent id from 16 hex digits; a random one from an empty text."""
    if not text:
        return os.urandom(8)
    if not re.fullmatch("[0-9a-fA-F]{16}", text):
        raise ConfigError(f"{text!r} is not an agent id", "agent", "Write 16 hex digits")
    return bytes.fromhex(text)


def device_file(
    config: GatewayConfig,
    registry: Registry,
    device: Device,
    host: str = "",
    extra: "dict[str, Any] | None" = None,
    pin: bool = False,
) -> dict[str, Any]:
    """The content of device.json. extra: further fields, checked by the agent itself.

    pin: trust the broker's certificate itself, which needs no clock, not its authority.
    """
    fields: dict[str, Any] = {
        "agent": device.agent.hex(),
        "key": registry.secret(device.agent, device.generation).hex(),
        "generation": device.generation,
        "root": config.root,
        "broker": {"host": host or config.host, "port": config.port},
    }
    if config.devices is not None:
        fields["broker"] = {"host": host or config.devices.host, "port": config.devices.port}
        fields["broker"]["tls"] = trust(config, pin)
    elif config.tls and config.tls.get("ca"):
        fields["broker"]["tls"] = {"ca": config.tls["ca"]}
    for name, value in (extra or {}).items():
        if name in ("agent", "key", "generation"):
            raise ConfigError("is given by the gateway", name, "Leave it out")
        if isinstance(value, dict) and isinstance(fields.get(name), dict):
            fields[name].update(value)
        else:
            fields[name] = value
    return fields


def enrol(
    config: GatewayConfig,
    registry: Registry,
    name: str,
    agent: bytes,
    out: Path,
    now_ms: int,
    host: str = "",
    extra: "dict[str, Any] | None" = None,
    pin: bool = False,
) -> Device:
    """Take a device in and write its file. StoreError when id, name or file exist."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not allowed", "name", "Write letters, digits, . _ -, at most 64"
        )
    if out.exists():
        raise StoreError("is there already", str(out), "Name another file or remove it", 17)
    device_file(config, registry, Device(0, agent, name, b"", 1, 0, None), host, extra, pin)
    device = registry.add(agent, name, now_ms)
    fields = device_file(config, registry, device, host, extra, pin)
    write_private(out, json.dumps(fields, indent=2) + "\n", exclusive=True)
    write_authority(config, out.parent)
    tell_brokers(config, registry)
    return device


def rotate(
    config: GatewayConfig,
    registry: Registry,
    device: Device,
    out: Path,
    now_ms: int,
    host: str = "",
    extra: "dict[str, Any] | None" = None,
    pin: bool = False,
) -> Device:
    """Begin a new key generation and write the device's new file.

    The broker takes the new password at once; frames sealed under the old key stay
    welcome until the device reports that it holds none.
    """
    if device.revoked_ms is not None:
        raise StoreError("is revoked", device.agent.hex(), "Enrol it under a new id")
    if out.exists():
        raise StoreError("is there already", str(out), "Name another file or remove it", 17)
    device = registry.rotate(device, now_ms)
    fields = device_file(config, registry, device, host, extra, pin)
    write_private(out, json.dumps(fields, indent=2) + "\n", exclusive=True)
    write_authority(config, out.parent)
    tell_brokers(config, registry)
    return device


def revoke(config: GatewayConfig, registry: Registry, device: Device, now_ms: int) -> None:
    """From now on the device is a stranger to broker and gateway."""
    registry.revoke(device, now_ms)
    tell_brokers(config, registry)


def authority_name(config: GatewayConfig) -> str:
    """The file beside device.json with the authority; each gateway's has its own name."""
    return f"ca-{config.gateway.hex()[:8]}.crt"


def trust(config: GatewayConfig, pin: bool) -> dict[str, str]:
    """The section broker.tls of a device's file."""
    if config.devices is None:
        raise ConfigError(
            "devices do not use TLS here", str(config.path), "edge-gateway tls --make"
        )
    if pin:
        return {"fingerprint": ca.fingerprint(ca.load(config.devices.cert)).hex()}
    return {"ca": authority_name(config)}


def write_authority(config: GatewayConfig, folder: Path) -> None:
    """What device.json names as its authority, beside it."""
    if config.devices is not None:
        raw = config.devices.ca.read_bytes()
        path = folder / authority_name(config)
        if not path.exists() or path.read_bytes() != raw:
            write_private(path, raw)


def tell_brokers(config: GatewayConfig, registry: Registry) -> None:
    broker.write_toml(config, registry)
    mosquitto.write_files(config, registry)
