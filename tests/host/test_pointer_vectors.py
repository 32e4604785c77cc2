"""tests/vectors/pointers.json, read with cbor2, pycddl, cryptography and plain arithmetic."""

import hmac
import json
import subprocess
import sys
from pathlib import Path

import cbor2
import pycddl
import pytest
from codebook_kit import CRYPTO, domain
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from network_kit import members

from gateway.cells import assign
from gateway.codebook import Codebook
from gateway.pointer import KINDS, REASONS, Pointer, PointerError, open_pointer
from gateway.sketch import INT4

ROOT = Path(__file__).resolve().parents[2]
VECTORS = json.loads((ROOT / "tests" / "vectors" / "pointers.json").read_text())
CDDL = (ROOT / "gateway" / "pointer.cddl").read_text()
NOW = VECTORS["now_s"]
BOOKS = {b["kind"]: Codebook.load(bytes.fromhex(b["file"]), CRYPTO) for b in VECTORS["codebooks"]}
GOOD = [(way, vector) for way in ("sealed", "open") for vector in VECTORS[way]["pointers"]]
HEADER = cbor2.dumps({1: -8, 16: 65013}, canonical=True)


def names():
    return [f"{way}: {vector['name']}" for way, vector in GOOD]


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """The second member of both networks: it reads what the first has written."""
    folder = tmp_path_factory.mktemp("nets")
    key = bytes.fromhex(VECTORS["network_key"])
    return {
        "sealed": members(folder / "sealed", "ab", key)[1],
        "open": members(folder / "open", "ab", b"")[1],
    }


def test_they_are_what_the_script_makes():
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "vectors" / "pointers.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def pointer_of(fields):
    return Pointer(**{
        name: bytes.fromhex(value) if name in ("domain", "gateway", "id", "sketch")
        else tuple(value) if name == "path" else value
        for name, value in fields.items()
    })  # fmt: skip


@pytest.mark.parametrize(("way", "vector"), GOOD, ids=names())
def test_we_read_them(nets, way, vector):
    one = pointer_of(vector["fields"])
    book = BOOKS[one.sketch_kind or INT4]
    net = nets[way]
    value, key = bytes.fromhex(vector["value"]), bytes.fromhex(vector["key"])
    assert net.network == VECTORS[way]["network"]
    assert open_pointer(value, key, net, book, NOW) == one
    assert one.token(net).hex() == vector["token"]


@pytest.mark.parametrize(("way", "vector"), GOOD, ids=names())
def test_others_read_and_write_them(way, vector):
    """From the description in SPEC.md alone: nothing of ours is called."""
    dumps = lambda value: cbor2.dumps(value, canonical=True)  # noqa: E731
    fields = vector["fields"]
    network_key = bytes.fromhex(VECTORS["network_key"]) if way == "sealed" else bytes(32)
    cell = ["qis cell", bytes.fromhex(fields["domain"]), fields["version"], fields["label"]]
    key = hmac.digest(network_key, dumps([*cell, fields["path"]]), "sha256")[:20]
    assert key.hex() == vector["key"]
    aad = dumps(["qis pointer", 1, VECTORS[way]["network"], key])
    value = bytes.fromhex(vector["value"])
    assert len(value) == vector["bytes"] <= 320
    signed = value
    if way == "sealed":
        pycddl.Schema("start = sealed\n" + CDDL).validate_cbor(value)
        nonce, inner = cbor2.loads(value)
        assert nonce.hex() == vector["nonce"]
        secret = HKDF(SHA256(), 32, None, b"qis1 pointer").derive(network_key)
        structure = dumps(["Encrypt0", dumps({1: 24}), aad])
        signed = ChaCha20Poly1305(secret).decrypt(nonce, inner, structure)
        # ChaCha20-Poly1305 is deterministic: the same bytes come out again.
        again = ChaCha20Poly1305(secret).encrypt(nonce, signed, structure)
        assert dumps([nonce, again]) == value
    pycddl.Schema("start = signed\n" + CDDL).validate_cbor(signed)
    body, signature = cbor2.loads(signed)
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(VECTORS["gateway_public"]))
    structure = dumps(["Signature1", HEADER, aad, body])
    public.verify(signature, structure)
    seed = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS["gateway_seed"]))
    assert seed.sign(structure) == signature
    pycddl.Schema(f"start = {KINDS[fields['kind']]}\n{CDDL}").validate_cbor(body)
    content = cbor2.loads(body)
    expected = {
        1: fields["kind"], 2: bytes.fromhex(fields["domain"]), 3: fields["version"],
        4: fields["label"], 5: int("1" + "".join(map(str, fields["path"])), 2),
        6: bytes.fromhex(fields["gateway"]), 7: bytes.fromhex(fields["id"]) or None,
        8: fields["epoch"], 9: fields["expires_s"], 10: fields["sketch_kind"] or None,
        11: bytes.fromhex(fields["sketch"]) or None, 12: fields["flags"] or None,
        13: fields["confidence"] if fields["kind"] == 1 else None, 14: fields["endpoint"] or None,
    }  # fmt: skip
    expected = {label: value for label, value in expected.items() if value is not None}
    assert content == expected and dumps(expected) == body


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda v: v["name"])
def test_what_is_refused(nets, vector):
    with pytest.raises(PointerError) as caught:
        open_pointer(
            bytes.fromhex(vector["value"]), bytes.fromhex(vector["key"]), nets["open"],
            BOOKS[INT4], NOW,
        )  # fmt: skip
    assert caught.value.reason == vector["reason"]


def test_every_reason_has_a_vector():
    """But those that need a seal, a revoked peer, or memory."""
    told = {vector["reason"] for vector in VECTORS["refused"]}
    assert told == set(REASONS) - {"bad-seal", "revoked", "replayed", "too-many"}


@pytest.mark.parametrize("kind", sorted(BOOKS))
def test_sketches_and_cells(kind):
    book = BOOKS[kind]
    (told,) = [b for b in VECTORS["codebooks"] if b["kind"] == kind]
    assert (book.id.hex(), book.domain_id) == (told["id"], domain().id)
    for vector in told["cells"]:
        sketch = book.sketcher.encode(bytes.fromhex(vector["vector"]))
        assert sketch.hex() == vector["sketch"]
        assert book.sketcher.decode(sketch).hex() == vector["decoded"]
        path = assign(book, bytes.fromhex(vector["decoded"]))[0]
        assert "".join(map(str, path)) == vector["path"] and len(path) == told["levels"]


def test_sketch_int4_by_hand():
    """As SPEC.md says it, number by number."""
    (told,) = [b for b in VECTORS["codebooks"] if b["kind"] == INT4]
    content = cbor2.loads(cbor2.loads(bytes.fromhex(told["file"])).value[2])
    steps, offset = content[4], [b - 256 if b > 127 else b for b in content[5]]
    for vector in told["cells"]:
        codes = []
        for value, step, zero in zip(bytes.fromhex(vector["vector"]), steps, offset, strict=True):
            away = (value - 256 if value > 127 else value) - zero
            code = min(7, (2 * abs(away) + step) // (2 * step))
            codes.append(-code if away < 0 else code)
        packed = bytes((codes[i] & 15) << 4 | codes[i + 1] & 15 for i in range(0, 64, 2))
        assert packed.hex() == vector["sketch"]
        decoded = [
            max(-127, min(127, z + c * s)) for c, s, z in zip(codes, steps, offset, strict=True)
        ]
        assert bytes(d & 255 for d in decoded).hex() == vector["decoded"]


def test_the_top_of_a_path_by_hand():
    """Nearest centroids, in the order of bits that SPEC.md gives."""
    for told in VECTORS["codebooks"]:
        content = cbor2.loads(cbor2.loads(bytes.fromhex(told["file"])).value[2])
        assert content[6] == 0  # no radius
        signed = lambda raw: [b - 256 if b > 127 else b for b in raw]  # noqa: E731
        first = [signed(content[7][i : i + 64]) for i in range(0, len(content[7]), 64)]
        second = [signed(content[8][i : i + 64]) for i in range(0, len(content[8]), 64)]
        k2 = len(second) // len(first)
        for vector in told["cells"]:
            point = signed(bytes.fromhex(vector["decoded"]))

            def nearest(rows, point=point):
                far = [sum((p - r) ** 2 for p, r in zip(point, row, strict=True)) for row in rows]
                return far.index(min(far))

            a = nearest(first)
            b = nearest(second[a * k2 : a * k2 + k2])
            bits = (len(first) - 1).bit_length(), (k2 - 1).bit_length()
            top = format(a, f"0{bits[0]}b") + format(b, f"0{bits[1]}b")
            assert vector["path"].startswith(top)
