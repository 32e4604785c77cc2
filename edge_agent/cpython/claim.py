"""Redeem a claim code: from a code to a device's file that an agent can run with.

Two connections. The first fetches the authority's certificate from whoever answers and
compares its hash with the pin in the code; nothing was said until then. The second trusts
exactly that authority, checks the name, and shows the secret. A nonce, kept in a file until
the answer is on disk, lets the same device ask again when the answer was lost.

A file that exists is that of a device with a new key: its id must be the one in the answer;
key, generation and where the broker is are replaced, all else stays, the journal too.
"""

import base64
import contextlib
import getpass
import hashlib
import hmac
import http.client
import json
import os
import ssl
import sys
from pathlib import Path
from typing import Any

from edge_agent.config import Config
from edge_agent.cpython.claim_code import PIN_BYTES, TEXT_MAX, ClaimCode
from edge_agent.errors import ConfigError, LinkError, RemoteError, StoreError

TIMEOUT_S = 15.0
ANSWER_MAX = 1 << 20
_NONCE_BYTES = 16
_WHY = {
    "unknown": "the gateway knows no such code",
    "used": "somebody has used this code before: if it was not you, revoke the device",
    "expired": "the code has expired",
    "revoked": "the device is revoked",
    "superseded": "the device has a newer key than this code would give it",
    "rate-limited": "too many wrong codes from this address: wait a minute",
}


def read_code(path: "str | None") -> str:
    """The code from a file, a person, or standard input; never from the command line, which
    every user of this machine can see and the shell remembers."""
    if path is not None:
        try:
            with open(path) as file:
                return file.read(TEXT_MAX + 1)
        except (OSError, ValueError) as error:
            raise ConfigError(str(error), path, "Name the file with the code")
    if sys.stdin.isatty():
        return getpass.getpass("Code (not shown): ")
    return sys.stdin.readline(TEXT_MAX + 1)


def _call(
    code: ClaimCode, context: ssl.SSLContext, method: str, path: str, body: "str | None" = None
) -> bytes:
    connection = http.client.HTTPSConnection(
        code.host, code.port, timeout=TIMEOUT_S, context=context
    )
    try:
        connection.request(method, path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        data = answer.read(ANSWER_MAX + 1)
    except ssl.SSLError as error:
        raise LinkError("refused", f"TLS with {code.address()}: {error.reason or error}")
    except (OSError, http.client.HTTPException) as error:
        raise LinkError("network", f"{code.address()}: {error or type(error).__name__}")
    finally:
        connection.close()
    if len(data) > ANSWER_MAX:
        raise RemoteError("too-long", code.address())
    if answer.status != 200:
        try:
            reason = str(json.loads(data)["error"])[:40]
        except (ValueError, KeyError, TypeError):
            reason = str(answer.status)
        raise RemoteError(reason, _WHY.get(reason, code.address()))
    return data


def authority(code: ClaimCode) -> str:
    """The certificate that the code pins, as PEM. RemoteError when another one answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # judged by the pin, before anything is said
    data = _call(code, context, "GET", "/authority")
    try:
        pem = data.decode("ascii")
        der = ssl.PEM_cert_to_DER_cert(pem)
    except ValueError:
        raise RemoteError("bad-certificate", code.address())
    if not hmac.compare_digest(hashlib.sha256(der).digest()[:PIN_BYTES], code.pin):
        raise RemoteError("wrong-gateway", f"{code.address()} is not the gateway of this code")
    return pem


def redeem(text: str, out: Path) -> dict[str, Any]:
    """Write the device's file `out` (0600), its authority and domain files; a summary.

    ConfigError: no code, or a file of another device. RemoteError: the gateway refuses, or
    is not the one of the code. LinkError: it cannot be reached.
    """
    code = ClaimCode.parse(text)
    old = _old(out)
    note = _note(out, code)
    nonce = _nonce(note)
    pem = authority(code)
    context = ssl.create_default_context(cadata=pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    body = json.dumps({"secret": code.secret.hex(), "nonce": nonce.hex()})
    answer = _call(code, context, "POST", "/claim", body)
    try:
        found = json.loads(answer)
        fields, domains = dict(found["config"]), dict(found["domains"])
        files = {_plain(name): base64.b64decode(data) for name, data in domains.items()}
        config = Config.from_json(fields)
    except (ValueError, KeyError, TypeError) as error:
        raise RemoteError("bad-field", f"{code.address()}: {type(error).__name__}")
    if old is not None:
        if old["agent"] != fields["agent"]:
            raise ConfigError(
                f"is of device {old['agent']}, the code is for {fields['agent']}",
                str(out),
                "Name another file",
            )
        broker = {**old.get("broker", {}), **fields["broker"]}
        fields = {**old, **{n: fields[n] for n in ("key", "generation", "root")}, "broker": broker}
    elif len(files) == 1:
        fields.setdefault("domain", next(iter(files)))
    trusted = config.broker.tls.ca if config.broker.tls is not None else ""
    if trusted:
        _write(out.with_name(_plain(trusted)), pem.encode())
    for name, data in files.items():
        if not out.with_name(name).exists():
            _write(out.with_name(name), data)
    Config.from_json(fields)
    _write(out, (json.dumps(fields, indent=2) + "\n").encode())
    with contextlib.suppress(OSError):
        note.unlink()
    return {
        "agent": fields["agent"],
        "generation": fields["generation"],
        "broker": f"{config.broker.host}:{config.broker.port}",
        "config": str(out),
    }


def _old(out: Path) -> "dict[str, Any] | None":
    if not out.exists():
        return None
    Config.load(str(out))
    fields: dict[str, Any] = json.loads(out.read_text())
    return fields


def _plain(name: str) -> str:
    """A file name from elsewhere, which must not lead anywhere."""
    if not name or name != Path(name).name or name.startswith(".") or len(name) > 100:
        raise ValueError(name)
    return name


def _note(out: Path, code: ClaimCode) -> Path:
    """Where the nonce of this code is kept: of the code, not of `out`, which may be another
    file the next time."""
    mark = hashlib.sha256(b"edge claim note" + code.secret).hexdigest()
    return out.with_name(f".claim-{mark[:16]}")


def _nonce(note: Path) -> bytes:
    """16 random bytes, the same while this code is asked for again."""
    try:
        held = bytes.fromhex(note.read_text())
        if len(held) == _NONCE_BYTES:
            return held
    except (OSError, ValueError):
        pass
    fresh = os.urandom(_NONCE_BYTES)
    _write(note, fresh.hex().encode())
    return fresh


def _write(path: Path, data: bytes) -> None:
    """Whole and durable, mode 0600."""
    part = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise StoreError(
            error.strerror or str(error), str(path), "Check the folder", error.errno or 0
        )
