"""Making a domain out of a description that a person wrote: `edge-gateway domain init`.

    {"name": "fan", "labels": ["off", "turning", "blocked"], "space": "fan.space.json"}

is the least. More fields: "version" (1), "tags" (unsure, synthesised), "actions" (none), "results"
(unknown, confirmed, corrected), "similarity" (cosine), and "training", which is not ours. "space"
is the vector space, or the name of a JSON file that has it, beside the description:

    {"encoder": "fan.tflite",            a model beside it, or "features": any model will do
     "dim": 64,                          numbers in the encoder's embedding
     "multiplier": 127, "shift": 8,      v = (x * multiplier + 2^(shift-1)) >> shift
     "features": {"kind": "stats8", "axes": 3, "window": 64, "hop": 32,
                  "offset": [...], "mul": [...], "shift": 16}}

The domain is signed with its owner's key, a file of 64 hex digits. When there is none, one is
made: whoever has it can append names to the domain and sign codebooks for it, nobody else can.
A domain file that is there already is only replaced by a later version of itself.
"""

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import PROFILE, Domain, Features, VectorSpace, make_domain
from edge_agent.errors import CborError, ConfigError, DomainError, LocalError
from gateway.files import read_private, write_private

DEFAULTS: dict[str, list[str]] = {
    "tags": ["unsure", "synthesised"],
    "actions": ["none"],
    "results": ["unknown", "confirmed", "corrected"],
}
_KNOWN = {"name", "labels", "version", "similarity", "space", "training", *DEFAULTS}
_SPACE = {"encoder", "dim", "multiplier", "shift", "features"}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. ConfigError."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(error.strerror or str(error), str(path), "Name a JSON file")
    except ValueError as error:
        raise ConfigError(f"not JSON ({error})", str(path), "Check commas and quotes")
    if not isinstance(found, dict):
        raise ConfigError("is no JSON object", str(path), 'Like {"name": "fan", ...}')
    return found


def _names(found: dict[str, Any], field: str, path: Path) -> list[str]:
    value = found.get(field, DEFAULTS.get(field))
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError("must be a list of texts", f"{path}: {field}", 'Like ["off", "on"]')
    return list(value)


def _space(found: Any, path: Path) -> VectorSpace:
    """The vector space of a description at `path`."""
    where = f"{path}: space"
    if isinstance(found, str):
        path = path.parent / found
        found, where = read_json(path), str(path)
    if not isinstance(found, dict) or set(found) != _SPACE:
        raise ConfigError("is incomplete", where, "It has " + ", ".join(sorted(_SPACE)))
    inner = found["features"]
    if not isinstance(inner, dict) or set(inner) != set(Features._fields):
        raise ConfigError(
            "is incomplete", where + ".features", "It has " + " ".join(Features._fields)
        )
    shape = dict(inner)
    for name in ("offset", "mul"):
        if not isinstance(shape[name], list):
            raise ConfigError("must be a list", f"{where}.features.{name}", "Of whole numbers")
        shape[name] = tuple(shape[name])
    encoder = found["encoder"]
    if not isinstance(encoder, str):
        raise ConfigError("must be a text", where + ".encoder", "The name of a .tflite file")
    if encoder.endswith(".tflite"):
        try:
            encoder = hashlib.sha256((path.parent / encoder).read_bytes()).digest()
        except OSError as error:
            raise ConfigError(
                error.strerror or str(error), str(path.parent / encoder), "Put it there"
            )
    elif encoder != PROFILE:
        raise ConfigError(
            f"is {encoder!r}", where + ".encoder", f"The name of a .tflite file, or {PROFILE}"
        )
    return VectorSpace(
        found["dim"], encoder, found["multiplier"], found["shift"], Features(**shape)
    )


def read_file(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(error.strerror or str(error), str(path), f"Name a {what} file")


def load_domain(path: Path) -> Domain:
    return Domain.load(read_file(path, "domain"), HostCrypto())


def load_owner(path: Path) -> bytes:
    """The 32-byte seed of a file of 64 hex digits, mode 0600."""
    text = read_private(path).decode("ascii", "replace").strip()
    if len(text) != 64 or text.strip("0123456789abcdef"):
        raise ConfigError("is not 64 hex digits", str(path), "Name the domain owner's key")
    return bytes.fromhex(text)


def load_or_make_key(path: Path) -> tuple[bytes, bool]:
    """(the owner's seed, whether it was made just now)."""
    if path.exists():
        return load_owner(path), False
    seed = os.urandom(32)
    write_private(path, seed.hex() + "\n", exclusive=True)
    return seed, True


def make(description: Path, seed: bytes) -> bytes:
    """The signed domain file that a description asks for. ConfigError names what is wrong."""
    found = read_json(description)
    unknown = sorted(set(found) - _KNOWN)
    if unknown:
        raise ConfigError(
            "unknown field", f"{description}: {unknown[0]}", "Known: " + ", ".join(sorted(_KNOWN))
        )
    for field in ("name", "labels", "space"):
        if field not in found:
            raise ConfigError("is missing", f"{description}: {field}", "Write it")
    crypto = HostCrypto()
    try:
        return make_domain(
            crypto,
            seed,
            crypto.public_key(seed),
            found["name"],
            found.get("version", 1),
            _space(found["space"], description),
            _names(found, "labels", description),
            _names(found, "tags", description),
            _names(found, "actions", description),
            _names(found, "results", description),
            found.get("similarity", "cosine"),
        )
    except (DomainError, CborError) as error:
        raise ConfigError(str(error), str(description), "See SPEC.md, section 11")


def replace(out: Path, data: bytes, force: bool = False) -> str:
    """Write a domain file: "made", "extended" or "fits". ConfigError when it is another one's."""
    state = "made"
    if out.exists() and not force:
        crypto = HostCrypto()
        if out.read_bytes() == data:
            return "fits"
        try:
            old, new = Domain.load(out.read_bytes(), crypto), Domain.load(data, crypto)
        except DomainError as error:
            raise ConfigError(f"is no domain ({error})", str(out), "Name another file, or --force")
        if not new.extends(old) or new.version == old.version:
            raise ConfigError(
                "another domain, or not a later version of it, is there already",
                str(out),
                "A later version has a higher version number and only appends names; "
                "with another key, model or features it is another domain: --force",
            )
        state = "extended"
    try:
        out.write_bytes(data)
    except OSError as error:
        raise LocalError(error.strerror or str(error), str(out), "Check the folder")
    return state


def show(options: argparse.Namespace, found: "dict[str, Any]") -> int:
    lines = [f"{name:12} {value}" for name, value in found.items()]
    print(json.dumps(found, indent=1) if options.json else "\n".join(lines))
    return 0


def show_domain(options: argparse.Namespace, domain: Domain, more: "dict[str, Any]") -> int:
    found: dict[str, Any] = {
        "name": domain.name,
        "domain": domain.id.hex(),
        "version": domain.version,
        "owner": domain.owner.hex(),
        "similarity": domain.similarity,
        "labels": list(domain.labels),
        "tags": list(domain.tags),
        "actions": list(domain.actions),
        "results": list(domain.results),
    }
    return show(options, found | more)


def do_init(options: argparse.Namespace) -> int:
    seed, new = load_or_make_key(options.key)
    data = make(options.description, seed)
    state = replace(options.out, data, options.force)
    domain = Domain.load(data, HostCrypto())
    more = {"key": f"{options.key} is new: keep it, and keep it secret"} if new else {}
    return show_domain(options, domain, {"written": f"{options.out}, {state}", **more})


def add_init_command(inner: Any) -> None:
    """Hang `domain init` into the subparsers of `edge-gateway domain`."""
    text = "sign the domain that a description asks for"
    sub = inner.add_parser("init", help=text, description=text)
    sub.add_argument("description", type=Path, help="JSON: name, labels, space ...")
    sub.add_argument(
        "--key", type=Path, required=True, help="the owner's key; made when there is none"
    )
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="domain file to write")
    sub.add_argument("--force", action="store_true", help="replace another domain")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.set_defaults(do=do_init)
