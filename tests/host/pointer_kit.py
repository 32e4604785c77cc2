"""Pointers for tests: good ones, and bytes made by code that is not ours."""

import hashlib
import hmac
import os

import cbor2
import pytest
from codebook_kit import clustered, codebook
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from network_kit import members

from gateway import pointer as module
from gateway.cells import assign, levels
from gateway.pointer import AGENT, CONFIRMED, MARKER, OUTCOME, WITHDRAWAL, Pointer, seal
from gateway.sketch import INT4

BOOK = codebook(INT4)
LEVELS = levels(BOOK)
NOW = 1_800_000_000


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """Sealed: three members that know each other."""
    return members(tmp_path_factory.mktemp("sealed"))


@pytest.fixture(scope="module")
def open_nets(tmp_path_factory):
    return members(tmp_path_factory.mktemp("open"), "ab", b"")


def made(net, salt=0, level=1, book=BOOK, kind=OUTCOME, **changes):
    """A good pointer of one of the test's vectors."""
    vector = clustered(salt + 1, 7)[0][salt].tobytes()
    sketch = book.sketcher.encode(vector)
    path = assign(book, book.sketcher.decode(sketch))[0][:level]
    outcome = kind == OUTCOME
    one = Pointer(
        kind, book.domain_id, book.version, None if kind == AGENT else 2, path, net.gateway,
        hashlib.sha256(b"%d" % salt).digest()[: 8 if kind == AGENT else 16], NOW - 100,
        NOW + 86_400, book.kind, sketch, CONFIRMED, 200 if outcome else 0, "192.168.10.21:8443",
    )  # fmt: skip
    if kind == MARKER:
        one = one.withdrawal(one.epoch)._replace(kind=MARKER, id=b"")
    elif kind == WITHDRAWAL:
        one = one.withdrawal(one.epoch)
    return one._replace(**changes)


def place(one, net):
    return one.key(net), seal(one, net, net.crypto)


def cell_number(path):
    return int("1" + "".join(map(str, path)), 2)


def independent(one, net, nonce=None, **body_changes):
    """The bytes of a pointer by cbor2 and cryptography alone, as SPEC.md has it."""
    dumps = lambda value: cbor2.dumps(value, canonical=True)  # noqa: E731
    fields = {
        1: one.kind, 2: one.domain, 3: one.version, 4: one.label, 5: cell_number(one.path),
        6: one.gateway, 7: one.id, 8: one.epoch, 9: one.expires_s, 10: one.sketch_kind,
        11: one.sketch, 12: one.flags or None, 13: one.confidence, 14: one.endpoint or None,
    }  # fmt: skip
    body = dumps({k: v for k, v in {**fields, **body_changes}.items() if v is not None})
    cell = dumps(["qis cell", one.domain, one.version, one.label, list(one.path)])
    key = hmac.digest(net.key or bytes(32), cell, "sha256")[:20]
    aad = dumps(["qis pointer", 1, net.network, key])
    signer = Ed25519PrivateKey.from_private_bytes(net.seed)
    header = dumps({1: -8, 16: 65013})
    data = dumps([body, signer.sign(dumps(["Signature1", header, aad, body]))])
    if net.key:
        secret = HKDF(SHA256(), 32, None, b"qis1 pointer").derive(net.key)
        nonce = nonce or os.urandom(12)
        more = dumps(["Encrypt0", dumps({1: 24}), aad])
        data = dumps([nonce, ChaCha20Poly1305(secret).encrypt(nonce, data, more)])
    return key, data


def independent_body(one, net, changes):
    """`independent` with labels changed (None: left out); the key stays that of `one`."""
    fields = {
        1: one.kind, 2: one.domain, 3: one.version, 4: one.label, 5: cell_number(one.path),
        6: one.gateway, 7: one.id, 8: one.epoch, 9: one.expires_s, 10: one.sketch_kind,
        11: one.sketch, 13: one.confidence,
    }  # fmt: skip
    fields.update(changes)
    body = cbor2.dumps({k: v for k, v in fields.items() if v is not None}, canonical=True)
    key = one.key(net)
    aad = module.external(net.network, key)
    signature = net.crypto.sign(
        net.seed, cbor2.dumps(["Signature1", module.SIGN1_HEADER, aad, body])
    )
    data = cbor2.dumps([body, signature])
    if net.key:
        nonce = os.urandom(12)
        secret = HKDF(SHA256(), 32, None, b"qis1 pointer").derive(net.key)
        more = cbor2.dumps(["Encrypt0", module.ENCRYPT0_HEADER, aad])
        data = cbor2.dumps([nonce, ChaCha20Poly1305(secret).encrypt(nonce, data, more)])
    return key, data
