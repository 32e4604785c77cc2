"""Which devices this gateway answers for, and their keys.

No device key is stored: all of them come from one master secret, the agent id and the key
generation, so that the only file to guard is `master.key`. A generation stays good until
the device reports that its journal holds nothing sealed under it (frames are never sealed
again); a revoked device has no good generation.
"""

import os
import re
from collections import namedtuple
from pathlib import Path
from typing import Any

from edge_agent.cose import hkdf
from edge_agent.cpython.signer import HostCrypto
from edge_agent.errors import ConfigError, FrameError, StoreError
from edge_agent.frame import DeviceKeys
from gateway.files import read_private, write_private
from gateway.store import Store

# gateway: id of the owner's registry.  revoked_ms: None while in service.
Device = namedtuple(
    "Device", ("id", "agent", "name", "gateway", "generation", "enrolled_ms", "revoked_ms")
)
_COLUMNS = "id, agent, name, gateway, generation, enrolled_ms, revoked_ms"


def new_master(path: Path) -> None:
    """Create the master secret, 32 random bytes as hex, mode 0600. Never replaces one."""
    write_private(path, os.urandom(32).hex() + "\n", exclusive=True)


def load_master(path: Path) -> bytes:
    text = read_private(path).decode("ascii", "replace").strip()
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ConfigError("is not 64 hex digits", str(path), "Restore it from your backup")
    return bytes.fromhex(text)


def device_key(crypto: Any, master: bytes, agent: bytes, generation: int) -> bytes:
    """The 32-byte key of one generation of one device."""
    return hkdf(crypto, master, b"qis1 device" + agent + bytes([generation]), 32)


class Registry:
    """The devices of one database, and the keyring that `ingest` asks."""

    def __init__(self, store: Store, master: bytes, gateway: bytes) -> None:
        self.store = store
        self.gateway = gateway
        self.crypto = HostCrypto()
        self._master = master
        self._keys: dict[tuple[bytes, int], DeviceKeys | None] = {}
        self._devices: dict[bytes, Device | None] = {}
        self._version = -1

    def __repr__(self) -> str:
        return f"Registry(gateway={self.gateway.hex()})"

    # -- reading --------------------------------------------------------------------

    def refresh(self) -> None:
        """Forget what was cached when another process changed the database."""
        version = self.store.foreign_changes()
        if version != self._version:
            self._version = version
            self.forget()

    def forget(self) -> None:
        self._keys.clear()
        self._devices.clear()

    def device(self, agent: bytes) -> Device | None:
        try:
            return self._devices[agent]
        except KeyError:
            pass
        row = self.store.run(f"SELECT {_COLUMNS} FROM devices WHERE agent = ?", (agent,)).fetchone()  # noqa: S608
        found = Device(*row) if row else None
        if len(self._devices) < 100_000:
            self._devices[agent] = found
        return found

    def devices(self) -> list[Device]:
        rows = self.store.run(f"SELECT {_COLUMNS} FROM devices ORDER BY name")  # noqa: S608
        return [Device(*row) for row in rows]

    def refusal(self, agent: bytes) -> str:
        """Why frames of `agent` are not taken: "" or a reason for the counters."""
        device = self.device(agent)
        if device is None:
            return "unknown-agent"
        if device.gateway != self.gateway:
            return "other-gateway"
        if device.revoked_ms is not None:
            return "revoked"
        return ""

    def __call__(self, agent: bytes, generation: int) -> DeviceKeys | None:
        """The keyring: keys of a generation in service, None for an agent not served.

        FrameError("unknown-generation") for a generation never begun or retired.
        """
        try:
            return self._keys[agent, generation]
        except KeyError:
            pass
        keys = None
        if not self.refusal(agent):
            row = self.store.run(
                "SELECT 1 FROM generations g JOIN devices d ON d.id = g.device"
                " WHERE d.agent = ? AND g.generation = ? AND g.retired_ms IS NULL",
                (agent, generation),
            ).fetchone()
            if row is None:
                raise FrameError("unknown-generation", str(generation))
            keys = DeviceKeys(self.crypto, agent, self.secret(agent, generation), generation)
        if len(self._keys) < 100_000:
            self._keys[agent, generation] = keys
        return keys

    def secret(self, agent: bytes, generation: int) -> bytes:
        return device_key(self.crypto, self._master, agent, generation)

    def password(self, device: Device) -> str:
        """The MQTT password of the device's current generation."""
        secret = self.secret(device.agent, device.generation)
        return DeviceKeys(self.crypto, device.agent, secret, device.generation).mqtt_password()

    def operator_password(self) -> str:
        """Of the broker's user who may publish judgements, and nothing else."""
        return hkdf(self.crypto, self._master, b"qis1 operator" + self.gateway, 16).hex()

    # -- writing --------------------------------------------------------------------

    def add(self, agent: bytes, name: str, now_ms: int) -> Device:
        """Take a device in. StoreError when the id or the name is in use."""
        self.store.begin()
        try:
            self.forget()
            row = self.store.run(
                "SELECT agent, name FROM devices WHERE agent = ? OR name = ?", (agent, name)
            ).fetchone()
            if row:
                what, fix = "device id", "Choose another id; every device needs its own"
                if row[0] != agent:
                    what, fix = "device name", "Choose another name"
                raise StoreError(
                    f"{what} is in use: {row[0].hex()} is enrolled as {row[1]!r}",
                    agent.hex(),
                    fix + ". To give this device a new key, use `edge-gateway rotate`",
                    17,
                )
            cursor = self.store.run(
                "INSERT INTO devices (agent, name, gateway, generation, enrolled_ms)"
                " VALUES (?,?,?,1,?)",
                (agent, name, self.gateway, now_ms),
            )
            self.store.run(
                "INSERT INTO generations (device, generation, created_ms) VALUES (?,1,?)",
                (cursor.lastrowid, now_ms),
            )
            self.store.commit()
        except BaseException:
            self.store.rollback()
            raise
        self.forget()
        device = self.device(agent)
        assert device is not None
        return device

    def rotate(self, device: Device, now_ms: int) -> Device:
        """Begin the next key generation; earlier ones stay good until `retire`."""
        if device.generation >= 255:
            raise StoreError(
                "all 255 key generations are used",
                device.agent.hex(),
                "Enrol the device under a new id",
            )
        self.store.begin()
        try:
            self.store.run(
                "UPDATE devices SET generation = ? WHERE id = ?",
                (device.generation + 1, device.id),
            )
            self.store.run(
                "INSERT INTO generations (device, generation, created_ms) VALUES (?,?,?)",
                (device.id, device.generation + 1, now_ms),
            )
            self.store.commit()
        except BaseException:
            self.store.rollback()
            raise
        self.forget()
        found = self.device(device.agent)
        assert found is not None
        return found

    def retire(self, agent: bytes, oldest: int, now_ms: int) -> int:
        """Retire generations below `oldest`: the device holds nothing under them.

        Part of the caller's transaction; returns how many went.
        """
        cursor = self.store.run(
            "UPDATE generations SET retired_ms = ? WHERE generation < ? AND retired_ms IS NULL"
            " AND device = (SELECT id FROM devices WHERE agent = ?)",
            (now_ms, oldest, agent),
        )
        if cursor.rowcount:
            self.forget()
        return cursor.rowcount

    def revoke(self, device: Device, now_ms: int) -> None:
        """From now on nothing this device sends is believed. What it sent stays."""
        self.store.begin()
        try:
            self.store.run("UPDATE devices SET revoked_ms = ? WHERE id = ?", (now_ms, device.id))
            self.store.commit()
        except BaseException:
            self.store.rollback()
            raise
        self.forget()

    def find(self, text: str) -> Device:
        """A device by its hex id or its name."""
        for device in self.devices():
            if text in (device.agent.hex(), device.name):
                return device
        raise ConfigError(
            f"no device {text!r} is enrolled", "device", "`edge-gateway devices` lists them"
        )
