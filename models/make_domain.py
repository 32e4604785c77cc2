"""The signed domain file of the watch exercises.

    python -m models.make_domain [--owner-key FILE] [--new-owner] [--version N]

Normally `models.train` calls this. The vector space names the encoder by SHA-256 and
carries the feature parameters, so another model means another space and another id.
The signature is deterministic (Ed25519): the same key and content give the same file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain, Features, VectorSpace, make_domain

HERE = Path(__file__).resolve().parent
NAME = "watch-exercises"
VERSION = 1
# In the order of the data set's label numbers: PEN ABD FEL IR ER TRAP ROW.
LABELS = (
    "pendulum",
    "abduction",
    "forward-elevation",
    "internal-rotation",
    "external-rotation",
    "trapezius-extension",
    "upright-row",
)
TAGS = ("unsure", "left-arm", "right-arm", "synthesised")
ACTIONS = ("none", "log", "notify")
RESULTS = ("unknown", "confirmed", "corrected")
# The embedding follows a ReLU: 0..255 above its zero point becomes 0..127.
MULTIPLIER = 127
SHIFT = 8


def space(out: Path) -> VectorSpace:
    """The vector space of the model and feature parameters in `out`."""
    p = json.loads((out / "watch_features.json").read_text())
    features = Features(
        p["kind"], p["axes"], p["window"], p["hop"], tuple(p["offset"]), tuple(p["mul"]), p["shift"]
    )
    encoder = hashlib.sha256((out / "watch_mlp_int8.tflite").read_bytes()).digest()
    return VectorSpace(64, encoder, MULTIPLIER, SHIFT, features)


def update(out: Path, key_file: Path, new_owner: bool = False, version: int = VERSION) -> int:
    """Sign again when something changed. 0 = the domain file fits; 3 = the key is missing."""
    crypto = HostCrypto()
    target = out / "watch.domain"
    wanted = space(out)
    lists = (LABELS, TAGS, ACTIONS, RESULTS)
    if target.exists() and not new_owner:
        present = Domain.load(target.read_bytes(), crypto)
        same = (present.labels, present.tags, present.actions, present.results) == lists
        if present.space == wanted and same and present.version == version:
            print(f"{target.name}: fits, domain id {present.id.hex()}")
            return 0
    if new_owner:
        if key_file.exists():
            print(f"{key_file}: exists. Move it away before making another owner", file=sys.stderr)
            return 3
        descriptor = os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as f:
            f.write(os.urandom(32).hex() + "\n")
    if not key_file.exists():
        print(
            f"{key_file}: the owner's key is not here, so {target.name} cannot be signed for this "
            "model. Put the key there, or make a domain of your own with --new-owner",
            file=sys.stderr,
        )
        return 3
    if key_file.stat().st_mode & 0o077:
        print(f"{key_file}: readable by others. chmod 600 {key_file}", file=sys.stderr)
        return 3
    text = key_file.read_text().strip()
    if len(text) != 64 or text.strip("0123456789abcdef"):
        print(f"{key_file}: not a key of 64 hex digits", file=sys.stderr)
        return 3
    seed = bytes.fromhex(text)
    owner = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    public = owner.public_bytes(Encoding.Raw, PublicFormat.Raw)
    data = make_domain(crypto, seed, public, NAME, version, wanted, *lists)
    target.write_bytes(data)
    domain = Domain.load(data, crypto)
    print(f"{target.name}: {len(data)} bytes, domain id {domain.id.hex()}, owner {public.hex()}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--owner-key", type=Path, help="default: owner.key in the --out directory")
    parser.add_argument("--new-owner", action="store_true")
    parser.add_argument("--version", type=int, default=VERSION)
    o = parser.parse_args()
    return update(o.out, o.owner_key or o.out / "owner.key", o.new_owner, o.version)


if __name__ == "__main__":
    sys.exit(main())
