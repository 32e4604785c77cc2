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
from gateway import broker, mosquitto
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
) -> dict[str, Any]:
    """The content of device.json. extra: further fields, checked by the agent itself."""
    fields: dict[str, Any] = {
        "agent": device.agent.hex(),
        "key": registry.secret(device.agent, device.generation).hex(),
        "generation": device.generation,
        "root": config.root,
        "broker": {"host": host or config.host, "port": config.port},
    }
    if config.tls and config.tls.get("ca"):
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
) -> Device:
    """Take a device in and write its file. StoreError when id, name or file exist."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not allowed", "name", "Write letters, digits, . _ -, at most 64"
        )
    if out.exists():
        raise StoreError("is there already", str(out), "Name another file or remove it", 17)
    device_file(config, registry, Device(0, agent, name, b"", 1, 0, None), host, extra)
    device = registry.add(agent, name, now_ms)
    fields = device_file(config, registry, device, host, extra)
    write_private(out, json.dumps(fields, indent=2) + "\n", exclusive=True)
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
    fields = device_file(config, registry, device, host, extra)
    write_private(out, json.dumps(fields, indent=2) + "\n", exclusive=True)
    tell_brokers(config, registry)
    return device


def revoke(config: GatewayConfig, registry: Registry, device: Device, now_ms: int) -> None:
    """From now on the device is a stranger to broker and gateway."""
    registry.revoke(device, now_ms)
    tell_brokers(config, registry)


def tell_brokers(config: GatewayConfig, registry: Registry) -> None:
    broker.write_toml(config, registry)
    mosquitto.write_files(config, registry)
