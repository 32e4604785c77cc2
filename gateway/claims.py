"""Codes for devices to come: one-time, expiring, each for one name.

`claims.db` (mode 0600) holds the SHA-256 of each code's secret, not the secret: whoever
reads the file can redeem nothing. It is no part of a backup; a code lives for minutes.

Redeeming has two steps, so that nothing is lost whatever fails in between. First the code
is marked with the nonce of who redeems it; then the device enters the register, or its next
key generation begins, unless that was done already. The same nonce may ask again until the
code expires and gets the same answer: an answer may be lost on its way. Any other nonce is
told "used", and that is counted: somebody else had the code.
"""

import hashlib
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.errors import ConfigError, RemoteError, StoreError
from gateway import enrol
from gateway.keys import Device, Registry

SCHEMA = """CREATE TABLE IF NOT EXISTS claims (
    id INTEGER PRIMARY KEY,
    secret BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    agent BLOB NOT NULL,
    generation INTEGER NOT NULL,
    extra TEXT NOT NULL,
    pin INTEGER NOT NULL,
    made_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    nonce BLOB,
    cancelled INTEGER NOT NULL DEFAULT 0)"""
_COLUMNS = "id, name, agent, generation, extra, pin, expires_ms, nonce, cancelled"
KEPT_MS = 7 * 86_400_000
OPEN_MAX = 1000


class ClaimError(RemoteError):
    """A code that is not redeemed. Reasons: unknown, used, expired, revoked, superseded."""


class Claim(NamedTuple):
    """generation: the one that begins with it; 1 for a new device. nonce: of who redeemed it."""

    id: int
    name: str
    agent: bytes
    generation: int
    extra: str
    pin: int
    expires_ms: int
    nonce: bytes | None
    cancelled: int

    def open(self, now_ms: int) -> bool:
        return self.nonce is None and not self.cancelled and now_ms < self.expires_ms


class Claims:
    """The codes of one gateway. Several processes may have it open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            with closing(self._open()) as db:
                db.execute(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(str(error), str(path), "Remove the file: open codes are lost with it")

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=10.0, isolation_level=None)

    def _run(self, sql: str, values: "tuple[Any, ...]" = ()) -> "list[tuple[Any, ...]]":
        try:
            with closing(self._open()) as db:
                return db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(str(error), str(self.path), "Check the disk")

    def make(
        self,
        secret: bytes,
        name: str,
        agent: bytes,
        generation: int,
        extra: "dict[str, Any]",
        pin: bool,
        now_ms: int,
        expires_ms: int,
    ) -> Claim:
        """A new code. ConfigError when one for this name is open."""
        self._run("DELETE FROM claims WHERE expires_ms < ?", (now_ms - KEPT_MS,))
        waiting = self.waiting(now_ms)
        if any(claim.name == name for claim in waiting):
            raise ConfigError(
                f"a code for {name!r} is open", "name", "edge-gateway claims --cancel NAME"
            )
        if len(waiting) >= OPEN_MAX:
            raise StoreError(f"{OPEN_MAX} codes are open", str(self.path), "Cancel some", 28)
        self._run(
            "INSERT INTO claims (secret, name, agent, generation, extra, pin, made_ms, expires_ms)"
            " VALUES (?,?,?,?,?,?,?,?)",
            (_hash(secret), name, agent, generation, json.dumps(extra), pin, now_ms, expires_ms),
        )
        return self._find("secret", _hash(secret))[0]

    def _find(self, column: str, value: Any) -> list[Claim]:
        rows = self._run(f"SELECT {_COLUMNS} FROM claims WHERE {column} = ?", (value,))  # noqa: S608
        return [Claim(*row) for row in rows]

    def get(self, number: int) -> Claim:
        return self._find("id", number)[0]

    def waiting(self, now_ms: int) -> list[Claim]:
        """The open ones."""
        rows = self._run(f"SELECT {_COLUMNS} FROM claims ORDER BY id")  # noqa: S608
        return [claim for claim in (Claim(*row) for row in rows) if claim.open(now_ms)]

    def cancel(self, number: int) -> None:
        self._run("UPDATE claims SET cancelled = 1 WHERE id = ?", (number,))

    def redeem(self, secret: bytes, nonce: bytes, registry: Registry, now_ms: int) -> Device:
        """The device of a code, entered in the register or with its new generation begun."""
        found = self._find("secret", _hash(secret))
        if not found:
            raise ClaimError("unknown", "no such code")
        claim = found[0]
        if claim.cancelled or now_ms >= claim.expires_ms:
            raise ClaimError("expired", claim.name)
        self._run(
            "UPDATE claims SET nonce = ? WHERE id = ? AND nonce IS NULL AND cancelled = 0",
            (nonce, claim.id),
        )
        claim = self.get(claim.id)
        if claim.nonce != nonce:
            raise ClaimError("used", claim.name)
        return _begin(claim, registry, now_ms)

    def fields(self, secret: bytes) -> "tuple[dict[str, Any], bool]":
        """Further fields of device.json, and whether it pins the certificate."""
        (claim,) = self._find("secret", _hash(secret))
        return json.loads(claim.extra), bool(claim.pin)


def _begin(claim: Claim, registry: Registry, now_ms: int) -> Device:
    registry.forget()
    device = registry.device(claim.agent)
    if device is None:
        if claim.generation != 1:
            raise ClaimError("superseded", claim.name)
        device = registry.add(claim.agent, claim.name, now_ms)
    if device.revoked_ms is not None:
        raise ClaimError("revoked", claim.name)
    if device.generation == claim.generation - 1:
        device = registry.rotate(device, now_ms)
    if device.generation != claim.generation:
        raise ClaimError("superseded", claim.name)
    return device


def check_new(registry: Registry, name: str, agent: bytes) -> None:
    """What `Registry.add` would refuse later is refused before a code is shown."""
    if not enrol.NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not allowed", "name", "Write letters, digits, . _ -, at most 64"
        )
    for device in registry.devices():
        if name == device.name or agent == device.agent:
            what = "name" if name == device.name else "id"
            raise StoreError(
                f"device {what} is in use",
                name if what == "name" else agent.hex(),
                "Choose another. A new key: `edge-gateway rotate NAME --claim`",
                17,
            )


def _hash(secret: bytes) -> bytes:
    return hashlib.sha256(b"edge claim" + secret).digest()
