"""One file with all that a gateway would miss, and the way back.

A backup is a tar archive, mode 0600, made while the gateway runs:

manifest.json   format, gateway id, time, SHA-256 of every other member
manifest.mac    HMAC of it under a key from the master secret: only this gateway makes one
databases       gateway.db, routing/routing.db, mailbox.db, each a consistent copy
settings        gateway.json without its password; domains/, codebooks/, models/, certificates
keys.sealed     only with `--keys`: master secret, network key, private keys, passwords

gateway.db is copied last: what the others remember of outcomes is in it then.

Keys are left out unless asked for, because whoever has them is this gateway, and backups lie
about. Asked for, they are sealed (AES-256-GCM) under a recovery code of 128 random bits. A
passphrase would have to be chosen and stretched, and a weak one would be tried at leisure by
whoever finds the file; a code costs a line on paper. The rest of the archive is not
encrypted: it holds outcomes, as gateway.db does on its own disk.

After a restore custody goes on by the rules for restored gateways (SPEC.md, section 10):
floors never go back, what a device had already freed is reported as lost by restore, the rest
comes again. What the folder still knows of devices is merged in before: a device that was
revoked stays revoked, a key that was begun stays begun. On a fresh disk nobody knows that;
`restore` says so. A restore that was cut off is finished by the next: what is known is merged
into the copy before it takes its place, and `master.key` comes last, so that a folder without
it asks for the keys again.
"""

import base64
import hashlib
import hmac
import io
import itertools
import json
import os
import shutil
import sqlite3
import tarfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edge_agent.cose import hkdf
from edge_agent.cpython.claim_code import spell, unspell
from edge_agent.cpython.signer import HostCrypto
from edge_agent.errors import ConfigError, RemoteError, StoreError
from edge_agent.version import __version__
from gateway.config import GatewayConfig
from gateway.files import only_one, write_private
from gateway.keys import load_master
from gateway.store import Store

FORMAT = 1
CODE_BYTES = 16
DATABASES = ("routing/routing.db", "mailbox.db", "gateway.db")
SECRETS = (
    "master.key", "gateway.json", "routing/gateway.key", "routing/network.json",
    "tls/ca.key", "tls/server.key",
)  # fmt: skip
PLAIN = ("domains/*", "codebooks/*", "models/*", "tls/*.crt", "routing/gateway.crt", "seed.json")
# Made anew by the gateway, or worth nothing later.
LEFT_OUT = (
    "claims.db", "*.lock", "*-wal", "*-shm", ".*", "*.bad", "status.json", "*.prom", "broker.*",
    "mosquitto/*", "routing/.*", "routing/api.token", "routing/dht*/**", "before-restore-*/**",
    "routing/*.lock", "routing/*-wal", "routing/*-shm", "routing/dht*", "before-restore-*",
)  # fmt: skip
_ABOUT = ("settings.json", "keys.sealed", "manifest.json", "manifest.mac")
MARK = "restore.unfinished"
PLAIN_MAX = 64 << 20
_AAD = b"edge-gateway backup 1 "


class BackupError(RemoteError):
    """A file that is no backup, a damaged one, or a code that does not open it."""


class Restored(NamedTuple):
    """made_ms: when the backup was. aside: where the files before it are, None when there
    were none. keys: whether keys came from it. merged: devices that the folder knew better."""

    gateway: bytes
    made_ms: int
    aside: Path | None
    keys: bool
    merged: list[str]


def new_code() -> str:
    """A recovery code, for paper."""
    raw = os.urandom(CODE_BYTES)
    return spell(raw + hashlib.sha256(raw).digest()[:1])


def _code_key(text: str) -> bytes:
    raw = unspell(text.strip(), CODE_BYTES + 1)
    if hashlib.sha256(raw[:-1]).digest()[:1] != raw[-1:]:
        raise ConfigError("is no recovery code: a character is wrong", "code", "Compare it")
    return hkdf(HostCrypto(), raw[:-1], b"qis1 backup keys", 32)


# -- making one ---------------------------------------------------------------------------


def backup(config: GatewayConfig, path: Path, code: str = "", now_ms: int = 0) -> dict[str, Any]:
    """Write `path`; its manifest. code: seal the keys under it and put them in."""
    if path.exists():
        raise StoreError("is there already", str(path), "Name another file", 17)
    key = _code_key(code) if code else b""
    folder = config.folder
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "gateway": config.gateway.hex(),
        "made_ms": now_ms or int(time.time() * 1000),
        "version": __version__,
        "keys": bool(code),
        "files": {},
    }
    part, copy = path.with_name(path.name + ".part"), path.with_name(path.name + ".copy")
    part.unlink(missing_ok=True)
    try:
        part.touch(0o600)
        with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as archive:
            for name in DATABASES:
                if (folder / name).exists():
                    _copy(folder / name, copy)
                    _put(archive, manifest, name, copy)
            for pattern in PLAIN:
                for one in sorted(folder.glob(pattern)):
                    if one.is_file() and not one.name.startswith("."):
                        _put(archive, manifest, one.relative_to(folder).as_posix(), one)
            open_fields = {k: v for k, v in config.fields.items() if k != "password"}
            _put(archive, manifest, "settings.json", json.dumps(open_fields, indent=2).encode())
            if code:
                found = [name for name in SECRETS if (folder / name).exists()]
                raw = {n: base64.b64encode((folder / n).read_bytes()).decode() for n in found}
                nonce = os.urandom(12)
                sealed = AESGCM(key).encrypt(nonce, json.dumps(raw).encode(), _aad(manifest))
                _put(archive, manifest, "keys.sealed", nonce + sealed)
            raw_manifest = json.dumps(manifest, indent=1).encode()
            _put(archive, None, "manifest.json", raw_manifest)
            _put(archive, None, "manifest.mac", _mac(load_master(config.master), raw_manifest))
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.rename(path)
    except (sqlite3.Error, OSError, tarfile.TarError) as error:
        raise StoreError(str(error), str(path), "Check the folder and its free space")
    finally:
        copy.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
    return manifest


def _mac(master: bytes, manifest: bytes) -> bytes:
    key = hkdf(HostCrypto(), master, b"qis1 backup mac", 32)
    return hmac.digest(key, manifest, "sha256")


def _aad(manifest: dict[str, Any]) -> bytes:
    return _AAD + f"{manifest['gateway']} {manifest['made_ms']}".encode()


def _copy(source: Path, target: Path) -> None:
    """A consistent copy of a database that others are writing to."""
    target.unlink(missing_ok=True)
    target.touch(0o600)
    with (
        closing(sqlite3.connect(source, timeout=10.0)) as one,
        closing(sqlite3.connect(target)) as two,
    ):
        one.backup(two)
        two.execute("PRAGMA journal_mode=DELETE")


def _put(
    archive: tarfile.TarFile,
    manifest: "dict[str, Any] | None",
    name: str,
    content: "bytes | Path",
) -> None:
    info = tarfile.TarInfo(name)
    info.mode = 0o600
    whole = hashlib.sha256()
    if isinstance(content, Path):
        with content.open("rb") as file:
            info.size = os.fstat(file.fileno()).st_size
            while block := file.read(1 << 20):
                whole.update(block)
            file.seek(0)
            archive.addfile(info, file)
    else:
        info.size = len(content)
        whole.update(content)
        archive.addfile(info, io.BytesIO(content))
    if manifest is not None:
        manifest["files"][name] = whole.hexdigest()


# -- the way back -----------------------------------------------------------------------


def restore(folder: Path, path: Path, code: "Callable[[], str]") -> Restored:
    """Put a backup into `folder`, which need not exist. Nothing there is lost: it is moved
    aside. code: called when the keys are needed from the archive.

    BackupError: damaged, or the code is wrong; nothing was changed then.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = folder / ".restore"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700)
    locks: list[int] = []
    try:
        manifest = _unpack(path, place)
        gateway = bytes.fromhex(manifest["gateway"])
        keys = _keys(folder, place, manifest, gateway, code)
        _check_mac(load_master((place if keys else folder) / "master.key"), place)
        for name in ("gateway.db", "routing/router"):
            if (folder / name).parent.is_dir():
                locks.append(only_one(folder / f"{name}.lock"))
        if not keys:
            _leave_certificates(folder, place)
        before = [folder / "gateway.db"]
        if (folder / MARK).exists():  # cut off: the folder's own may be aside already
            before += folder.glob("before-restore-*/gateway.db")
        known = [device for one in before for device in _devices(one, gateway)]
        merged = _merge(place, known)
        aside = _swap(folder, place, manifest)
        (folder / MARK).unlink()
        return Restored(gateway, manifest["made_ms"], aside, keys, merged)
    finally:
        for one in locks:
            os.close(one)
        shutil.rmtree(place, ignore_errors=True)


def _unpack(path: Path, place: Path) -> dict[str, Any]:
    """Every member in `place`, checked against the manifest, databases against themselves."""
    allowed = {*DATABASES, *_ABOUT}
    found: dict[str, str] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                inside = PurePosixPath(member.name)
                plain = any(inside.match(pattern) for pattern in PLAIN) and len(inside.parts) <= 2
                if not member.isfile() or inside.is_absolute() or ".." in inside.parts:
                    raise BackupError("bad-name", member.name[:80])
                if not (member.name in allowed or plain) or member.name in found:
                    raise BackupError("bad-name", member.name[:80])
                if member.name not in DATABASES and member.size > PLAIN_MAX:
                    raise BackupError("too-long", member.name)
                found[member.name] = _extract(archive, member, place / member.name)
        manifest = json.loads((place / "manifest.json").read_text())
        wanted, made = dict(manifest["files"]), int(manifest["made_ms"])
        right = len(bytes.fromhex(manifest["gateway"])) == 8 and made > 0
    except OSError as error:
        if isinstance(error, tarfile.TarError) or not error.errno:
            raise BackupError("damaged", str(error))
        raise StoreError(error.strerror or str(error), str(path), "Name a backup", error.errno)
    except (tarfile.TarError, ValueError, KeyError, TypeError, EOFError) as error:
        raise BackupError("damaged", f"{type(error).__name__}: {error}")
    if manifest.get("format") != FORMAT or not right:
        raise BackupError("unknown-format", str(manifest.get("format"))[:20])
    found.pop("manifest.json")
    found.pop("manifest.mac", "")
    if found != wanted or "gateway.db" not in found:
        raise BackupError("damaged", "content and manifest differ")
    for name in set(DATABASES) & set(found):
        try:
            with closing(sqlite3.connect(place / name)) as db:
                (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        except sqlite3.Error as error:
            verdict = str(error)
        if verdict != "ok":
            raise BackupError("damaged", f"{name}: {verdict}")
    return dict(manifest)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> str:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    source = archive.extractfile(member)
    assert source is not None
    whole = hashlib.sha256()
    with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while block := source.read(1 << 20):
            whole.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return whole.hexdigest()


def _keys(
    folder: Path, place: Path, manifest: dict[str, Any], gateway: bytes, code: "Callable[[], str]"
) -> bool:
    """Put the keys among the files, unless the folder has them; True when they came along."""
    if (folder / "gateway.json").exists() and (folder / "master.key").exists():
        if GatewayConfig(folder).gateway != gateway:
            raise ConfigError(
                f"is of gateway {gateway.hex()}", str(folder), "Restore into its own folder"
            )
        return False
    sealed = place / "keys.sealed"
    if not sealed.exists():
        raise ConfigError(
            "the backup has no keys, and the folder has none",
            str(folder),
            "Copy gateway.json and master.key there first, or use a backup made with --keys",
        )
    raw = sealed.read_bytes()
    try:
        opened = AESGCM(_code_key(code())).decrypt(raw[:12], raw[12:], _aad(manifest))
    except InvalidTag:
        raise BackupError("wrong-code", "the code does not open the keys of this backup")
    for name, data in json.loads(opened).items():
        if name in SECRETS:
            (place / name).parent.mkdir(mode=0o700, exist_ok=True)
            write_private(place / name, base64.b64decode(data))
    return True


def _check_mac(master: bytes, place: Path) -> None:
    """BackupError unless this gateway made it. Else it might bring a thief's device in."""
    try:
        tag = (place / "manifest.mac").read_bytes()
    except OSError:
        tag = b""
    if not hmac.compare_digest(tag, _mac(master, (place / "manifest.json").read_bytes())):
        raise BackupError("bad-tag", "this gateway did not make it, or not with this master.key")


def _leave_certificates(folder: Path, place: Path) -> None:
    """A certificate goes with its key: where keys stay, one that was made since stays, too."""
    for key, pattern in (("tls/server.key", "tls/*.crt"), ("routing/gateway.key", "routing/*.crt")):
        for copy in place.glob(pattern) if (folder / key).exists() else ():
            if (folder / copy.relative_to(place)).exists():
                copy.unlink()


def _swap(folder: Path, place: Path, manifest: dict[str, Any]) -> "Path | None":
    """The new files in, the old ones aside. A mark says so until it is done."""
    write_private(folder / MARK, manifest["gateway"] + "\n")
    stamp = time.strftime("before-restore-%Y%m%dT%H%M%SZ", time.gmtime())
    names = (f"{stamp}-{number}" if number else stamp for number in itertools.count())
    aside = next(folder / name for name in names if not (folder / name).exists())
    moved = False
    for name in _ABOUT:
        (place / name).unlink(missing_ok=True)
    files = sorted(p.relative_to(place) for p in place.rglob("*") if p.is_file())
    files.sort(key=lambda file: file.name == "master.key")
    for file in files:
        for old in (folder / file, *_journals(folder / file)):
            if old.exists():
                keep = aside / old.relative_to(folder)
                keep.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                old.rename(keep)
                moved = True
        (folder / file).parent.mkdir(mode=0o700, exist_ok=True)
        (place / file).rename(folder / file)
    for touched in {folder, *((folder / file).parent for file in files)}:
        descriptor = os.open(touched, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return aside if moved else None


def _journals(path: Path) -> "list[Path]":
    return [path.with_name(path.name + end) for end in ("-wal", "-shm")] * (path.suffix == ".db")


def _devices(path: Path, gateway: bytes) -> "list[tuple[Any, ...]]":
    """(agent, name, gateway, generation, enrolled, revoked) as the folder knows them now."""
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(path, timeout=10.0)) as db:
            return db.execute(
                "SELECT agent, name, gateway, generation, enrolled_ms, revoked_ms FROM devices"
                " WHERE gateway = ?",
                (gateway,),
            ).fetchall()
    except sqlite3.Error:
        return []  # damaged: that may be why it is restored


def _merge(folder: Path, known: "list[tuple[Any, ...]]") -> "list[str]":
    """Devices enrolled, keys begun, devices revoked since the backup; their names."""
    merged = []
    store = Store(folder / "gateway.db")
    try:
        store.begin()
        for agent, name, gateway, generation, enrolled, revoked in known:
            row = store.run(
                "SELECT id, generation, revoked_ms FROM devices WHERE agent = ?", (agent,)
            ).fetchone()
            if row is None:
                cursor = store.run(
                    "INSERT INTO devices (agent, name, gateway, generation, enrolled_ms)"
                    " VALUES (?,?,?,0,?)",
                    (agent, name, gateway, enrolled),
                )
                row = (cursor.lastrowid, 0, None)
            device, held, gone = row
            if generation > held or (revoked is not None and gone is None):
                merged.append(str(name))
            for number in range(held + 1, generation + 1):
                store.run(
                    "INSERT INTO generations (device, generation, created_ms) VALUES (?,?,?)",
                    (device, number, enrolled),
                )
            store.run(
                "UPDATE devices SET generation = ?, revoked_ms = coalesce(revoked_ms, ?)"
                " WHERE id = ?",
                (max(held, generation), revoked, device),
            )
        store.commit()
    except BaseException:
        store.rollback()
        raise
    finally:
        store.close()
    return merged
