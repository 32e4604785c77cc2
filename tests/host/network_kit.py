"""Members of a network, made by the same code as `edge-gateway network` uses."""

import hashlib
import json

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway import network
from gateway.cards import make_identity
from gateway.config import DEFAULTS
from gateway.files import write_private

KEY = bytes(range(100, 132))


def member(folder, name, key=KEY, endpoint=""):
    """One gateway; id and key follow from its name."""
    digest = hashlib.sha256(name.encode()).digest()
    home = folder / name
    (home / "routing").mkdir(parents=True)
    fields = dict(DEFAULTS, gateway=digest[:8].hex(), password="x" * 32)
    write_private(home / "gateway.json", json.dumps(fields))
    make_identity(home / "routing", digest[:8], Ed25519PrivateKey.from_private_bytes(digest))
    return network.create(home, "plant", key, endpoint=endpoint)


def members(folder, names="abc", key=KEY):
    """Gateways that all know each other."""
    made = [member(folder, name, key) for name in names]
    for one in made:
        for other, name in zip(made, names, strict=True):
            if other is not one:
                one.add(other.card(f"peer-{name}"))
    return made
