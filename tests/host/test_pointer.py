"""Pointers: bytes, every way in which one can be bad, and code that is not ours.

The tests print the sizes that SPEC.md tells (run with -s).
"""

import re
from pathlib import Path

import cbor2
import numpy as np
import pycddl
import pytest
from codebook_kit import codebook
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cwt import COSE, COSEKey
from hypothesis import given, settings
from hypothesis import strategies as st
from network_kit import KEY, member, members
from pointer_kit import (
    BOOK,
    LEVELS,
    NOW,
    independent,
    independent_body,
    made,
    nets,
    open_nets,
    place,
)

from gateway import pointer as module
from gateway.cells import assign, path_key
from gateway.pointer import (
    AGENT,
    AHEAD_MAX_S,
    MARKER,
    OUTCOME,
    POINTER_MAX,
    REASONS,
    WITHDRAWAL,
    Pointer,
    PointerError,
    open_pointer,
    seal,
)
from gateway.reader import Reader
from gateway.sketch import INT4, INT8, SIGN

ROOT = Path(__file__).resolve().parents[2]
CDDL = (ROOT / "gateway" / "pointer.cddl").read_text()
SCHEMAS = {kind: pycddl.Schema(f"start = {rule}\n{CDDL}") for kind, rule in module.KINDS.items()}

assert nets and open_nets  # fixtures


def refused(data, key, net, book=BOOK, now_s=NOW):
    with pytest.raises(PointerError) as caught:
        open_pointer(data, key, net, book, now_s)
    assert caught.value.reason in REASONS
    return caught.value.reason


# ---- good ones ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(module.KINDS))
@pytest.mark.parametrize("book_kind", [INT4, SIGN, INT8])
def test_every_kind_comes_back(nets, open_nets, kind, book_kind):
    book = codebook(book_kind)
    for writer, reader in (nets[:2], open_nets):
        for level in (1, 2, 5):
            one = made(writer, level=level, kind=kind, book=book)
            key, data = place(one, writer)
            assert open_pointer(data, key, reader, book, NOW) == one
            assert open_pointer(data, key, writer, book, NOW) == one


def test_sizes(nets, open_nets):
    """What SPEC.md says about sizes."""
    spec = (ROOT / "SPEC.md").read_text()
    for name, book in (("int4x64", BOOK), ("sign256", codebook(SIGN)), ("int8", codebook(INT8))):
        typical = made(nets[0], book=book, path=(0, 1) * 5, flags=0, version=1)
        worst = typical._replace(
            version=65_535, label=65_535, path=(1,) * 28, epoch=2**32 - 1,
            expires_s=2**32 - 1, flags=255, confidence=255, endpoint="x" * 58 + ":65535",
        )  # fmt: skip
        sizes = [len(seal(one, net, net.crypto)) for net in (nets[0], open_nets[0])
                 for one in (typical._replace(gateway=net.gateway),
                             worst._replace(gateway=net.gateway))]  # fmt: skip
        marker = len(seal(made(nets[0], kind=MARKER, book=book), nets[0], nets[0].crypto))
        gone = len(seal(made(nets[0], kind=WITHDRAWAL, book=book), nets[0], nets[0].crypto))
        print(f"\n{name}: sealed {sizes[0]} typical, {sizes[1]} worst; open {sizes[2]}, {sizes[3]};"
              f" marker {marker}, withdrawal {gone}")  # fmt: skip
        assert f"| {name} | {sizes[0]} | {sizes[1]} | {sizes[2]} | {sizes[3]} |" in spec
        assert sizes[1] <= POINTER_MAX
        if name != "int8":
            assert 190 <= sizes[0] <= 240
    assert f"At most {POINTER_MAX} bytes" in spec


u16 = st.integers(0, 0xFFFF)
u32 = st.integers(1, 0xFFFFFFFF)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(module.KINDS)), u16, st.binary(min_size=64, max_size=64),
    st.integers(1, LEVELS), u32, st.integers(1, AHEAD_MAX_S), st.integers(0, 255),
    st.integers(0, 255), st.sampled_from(["", "a:1", "[fe80::1%eth0]:8443", "x" * 58 + ":65535"]),
    st.binary(min_size=16, max_size=16), st.booleans(),
)  # fmt: skip
def test_roundtrip(
    nets, open_nets, kind, label, vector, level, epoch, life, flags, confidence, endpoint, id_, key
):
    net, other = nets[:2] if key else open_nets
    sketch = BOOK.sketcher.encode(vector)
    path = assign(BOOK, BOOK.sketcher.decode(sketch))[0][:level]
    one = Pointer(
        kind, BOOK.domain_id, BOOK.version, None if kind == AGENT else label, path, net.gateway,
        id_[:8] if kind == AGENT else id_, epoch, NOW + life, BOOK.kind, sketch, flags,
        confidence if kind == OUTCOME else 0, endpoint,
    )  # fmt: skip
    if kind == MARKER:
        one = one.withdrawal(epoch)._replace(kind=MARKER, id=b"")
    if kind == WITHDRAWAL:
        one = one.withdrawal(epoch)
    at, data = place(one, net)
    assert len(data) <= POINTER_MAX
    assert open_pointer(data, at, other, BOOK, NOW) == one


def test_what_cannot_be_read_cannot_be_sealed(nets):
    good = made(nets[0])
    for change in (
        {"gateway": b"short"}, {"id": bytes(8)}, {"sketch": bytes(31)}, {"sketch_kind": 9},
        {"kind": 5}, {"label": None}, {"label": 70_000}, {"path": ()}, {"path": (1,) * 29},
        {"epoch": -1}, {"epoch": 1 << 32}, {"expires_s": 0}, {"flags": 256}, {"confidence": 256},
        {"endpoint": "nowhere"}, {"endpoint": "x" * 64 + ":1"}, {"version": -1},
        {"domain": b""}, {"kind": AGENT}, {"gateway": nets[1].gateway},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            seal(good._replace(**change), nets[0], nets[0].crypto)


# ---- code that is not ours ----------------------------------------------------------


def test_bytes_made_elsewhere_are_ours(nets, open_nets):
    for net, other in (nets[:2], open_nets):
        one = made(net, level=3)
        nonce = bytes(range(12))
        key, data = independent(one, net, nonce)
        assert key == one.key(net)
        assert data == seal(one, net, net.crypto, nonce)
        assert open_pointer(data, key, other, BOOK, NOW) == one


@pytest.mark.parametrize("kind", sorted(module.KINDS))
def test_ours_read_elsewhere(nets, kind):
    net = nets[0]
    one = made(net, kind=kind, level=2)
    key, data = place(one, net)
    nonce, inner = cbor2.loads(data)
    aad = cbor2.dumps(["qis pointer", 1, net.network, key], canonical=True)
    secret = HKDF(SHA256(), 32, None, b"qis1 pointer").derive(KEY)
    sealing = COSEKey.new({1: 4, 3: 24, -1: secret, 2: b"k"})
    # Put back the headers that are not sent: then it is plain COSE.
    whole = cbor2.dumps(cbor2.CBORTag(16, [cbor2.dumps({1: 24}), {4: b"k", 5: nonce}, inner]))
    plain = COSE.new().decode(whole, sealing, external_aad=aad)
    body, signature = plain if isinstance(plain, list) else cbor2.loads(plain)
    header = cbor2.dumps({1: -8, 16: 65013}, canonical=True)
    signed = cbor2.dumps(cbor2.CBORTag(18, [header, {4: b"k"}, body, signature]))
    public = COSEKey.new({1: 1, 3: -8, -1: 6, -2: net.public, 2: b"k"})
    verified = COSE.new().decode(signed, public, external_aad=aad)
    content = verified if isinstance(verified, dict) else cbor2.loads(verified)
    assert content[6] == net.gateway and content[1] == kind
    Ed25519PublicKey.from_public_bytes(net.public).verify(
        signature, cbor2.dumps(["Signature1", header, aad, body])
    )
    pycddl.Schema("start = sealed\n" + CDDL).validate_cbor(data)
    pycddl.Schema("start = signed\n" + CDDL).validate_cbor(cbor2.dumps([body, signature]))
    SCHEMAS[kind].validate_cbor(body)
    assert cbor2.dumps(cbor2.loads(body), canonical=True) == body


def test_spec_cddl_and_code_agree(nets):
    spec = (ROOT / "SPEC.md").read_text().partition("## 16.")[2].partition("## 19.")[0]
    told = {int(n) for n in re.findall(r"^\| (\d+) \| [a-z]", spec, re.M)}
    cddl = {int(n) for n in re.findall(r"^  (?:\? )?(\d+): ", CDDL, re.M)}
    assert cddl == set(range(1, 15)) <= told
    assert set(re.findall(r"^\| `([a-z-]+)` \|", spec, re.M)) == set(REASONS)
    for kind, name in module.KINDS.items():
        assert f"{kind} {name}" in spec


# ---- bad ones -----------------------------------------------------------------------


def test_every_truncation_and_flip(nets, open_nets):
    for net, other in (nets[:2], open_nets):
        key, data = place(made(net), net)
        seen = set()
        for cut in range(len(data)):
            seen.add(refused(data[:cut], key, other))
        for at in range(len(data)):
            for mask in (1, 0x80, 0xFF, 1 << at % 8):
                wrong = bytearray(data)
                wrong[at] ^= mask
                seen.add(refused(bytes(wrong), key, other))
        seen.add(refused(data + b"\x00", key, other))
        if net.key:
            # Nothing can be learnt about a pointer by changing it.
            assert seen == {"not-cbor", "bad-seal"}
        assert open_pointer(data, key, other, BOOK, NOW)


def test_any_bytes(nets, open_nets):
    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=340), st.booleans())
    def check(data, sealed):
        refused(data, bytes(20), (nets if sealed else open_nets)[0])

    check()


def test_any_authentic_body(nets, open_nets):
    """A member can sign anything: every value of every field is met with a reason."""
    net, other = open_nets
    good = made(net)
    values = (
        st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=70)
        | st.text(max_size=20) | st.lists(st.integers(-1, 300), max_size=9)
    )  # fmt: skip

    @settings(max_examples=400, deadline=None)
    @given(st.dictionaries(st.integers(1, 16), values, min_size=1, max_size=3))
    def check(changes):
        key, data = independent(good, net)
        key, data = independent_body(good, net, changes)
        try:
            found = open_pointer(data, key, other, BOOK, NOW)
        except PointerError as error:
            assert error.reason in REASONS
        else:
            assert found.domain == BOOK.domain_id and found.gateway == net.gateway

    check()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({1: 0}, "bad-kind"), ({1: 5}, "bad-kind"), ({1: None}, "missing-field"),
        ({1: True}, "bad-field"), ({2: bytes(8)}, "wrong-domain"), ({2: bytes(7)}, "bad-field"),
        ({2: None}, "missing-field"), ({3: 2}, "wrong-version"), ({3: 65_536}, "bad-field"),
        ({4: 3}, "wrong-key"), ({4: -1}, "bad-field"), ({4: None}, "missing-field"),
        ({5: 5}, "wrong-key"), ({5: 1}, "bad-field"), ({5: 0}, "bad-field"), ({5: -2}, "bad-field"),
        ({5: 2 << LEVELS}, "bad-field"), ({5: 1 << 29}, "bad-field"), ({5: [1]}, "bad-field"),
        ({5: True}, "bad-field"), ({5: None}, "missing-field"), ({6: bytes(8)}, "unknown-gateway"),
        ({6: bytes(9)}, "bad-field"), ({7: bytes(15)}, "bad-field"), ({7: None}, "missing-field"),
        ({8: -1}, "bad-field"), ({8: 1 << 32}, "bad-field"), ({9: NOW}, "expired"),
        ({9: 1}, "expired"), ({9: 0}, "bad-field"), ({9: NOW + AHEAD_MAX_S + 1}, "too-far-ahead"),
        ({10: 2}, "bad-field"), ({10: 4}, "bad-field"), ({10: None}, "missing-field"),
        ({11: bytes(31)}, "bad-field"), ({11: bytes(33)}, "bad-field"),
        ({11: b"\x88" * 32}, "misplaced"), ({11: None}, "missing-field"), ({12: 0}, "bad-field"),
        ({12: 256}, "bad-field"), ({13: None}, "missing-field"), ({13: 256}, "bad-field"),
        ({14: "x"}, "bad-field"), ({14: b"a:1"}, "bad-field"), ({14: "a" * 63 + ":1"}, "bad-field"),
        ({15: 0}, None), ({99: "later"}, None), ({12: 128}, None),
    ],
)  # fmt: skip
def test_bad_fields(nets, changes, reason):
    net, other = nets[:2]
    key, data = independent_body(made(net), net, changes)
    if reason is None:
        assert open_pointer(data, key, other, BOOK, NOW)._replace(flags=0)
    else:
        assert refused(data, key, other) == reason


def test_not_the_encoding(nets):
    """Two encodings of one pointer would be two pointers."""
    net, other = nets[:2]
    one = made(net)
    key = one.key(net)
    aad = module.external(net.network, key)
    body = cbor2.dumps({6: one.gateway, 1: 1})  # keys not in order
    data = cbor2.dumps([body, net.crypto.sign(net.seed, body)])
    secret = HKDF(SHA256(), 32, None, b"qis1 pointer").derive(net.key)
    more = cbor2.dumps(["Encrypt0", module.ENCRYPT0_HEADER, aad])
    sealed = cbor2.dumps([bytes(12), ChaCha20Poly1305(secret).encrypt(bytes(12), data, more)])
    assert refused(sealed, key, other) == "not-cbor"
    for outer in ([bytes(11), bytes(40)], [bytes(12), bytes(15)]):
        assert refused(cbor2.dumps(outer), key, other) == "bad-seal"
    for outer in ([bytes(12)], [bytes(12), "x"], {}, 7, [bytes(12), bytes(40), b""]):
        assert refused(cbor2.dumps(outer), key, other) == "not-cbor"


def test_forged(nets, open_nets, tmp_path):
    for a, b, *_ in (nets, open_nets):
        # b signs in the name of a.
        key, data = independent(made(a), b)
        assert refused(data, key, a) == "bad-signature"
        assert refused(data, key, b) == "bad-signature"
    stranger = member(tmp_path, "stranger")
    key, data = place(made(stranger), stranger)
    assert refused(data, key, nets[0]) == "unknown-gateway"
    outside = member(tmp_path, "outside", bytes(32 * [7]))
    one = made(nets[0])
    assert refused(seal(one._replace(gateway=outside.gateway), outside, outside.crypto),
                   one.key(nets[0]), nets[0]) == "bad-seal"  # fmt: skip


def test_copied_to_another_key_or_network(nets, open_nets, tmp_path):
    a, b, _ = nets
    key, data = place(made(a), a)
    assert refused(data, path_key(a.key, BOOK.domain_id, 1, 3, made(a).path), b) == "bad-seal"
    # Without a seal the signature says it, once the fields have agreed.
    a, b = open_nets
    one = made(a)
    key, data = place(one, a)
    assert refused(data, bytes(20), b) == "wrong-key"
    key, data = independent_body(one, a, {4: 3})
    moved = one._replace(label=3)
    assert refused(data, moved.key(a), b) == "bad-signature"
    other = member(tmp_path, "other", b"")
    other.network += 1
    assert refused(seal(one._replace(gateway=other.gateway), other, other.crypto), key, b) in (
        "unknown-gateway", "bad-signature",
    )  # fmt: skip


def test_expired(nets):
    key, data = place(made(nets[0]), nets[0])
    assert open_pointer(data, key, nets[1], BOOK, NOW + 86_399)
    assert refused(data, key, nets[1], now_s=NOW + 86_400) == "expired"
    assert refused(data, key, nets[1], now_s=NOW - AHEAD_MAX_S) == "too-far-ahead"


def test_misplaced(nets):
    """A good signature under a popular cell, but the sketch belongs elsewhere."""
    one = made(nets[0], level=3)
    for at in range(3):
        path = tuple(bit ^ (i == at) for i, bit in enumerate(one.path))
        key, data = place(one._replace(path=path), nets[0])
        assert refused(data, key, nets[1]) == "misplaced"
        assert Reader(nets[1], BOOK).read(key, [data], NOW).rejected == {"misplaced": 1}


def test_wrong_codebook(nets):
    key, data = place(made(nets[0]), nets[0])
    assert refused(data, key, nets[1], codebook(INT4, version=2)) == "wrong-version"


def test_oversized(nets):
    key, data = place(made(nets[0]), nets[0])
    for size in (POINTER_MAX + 1, 100_000):
        assert refused(data + bytes(size - len(data)), key, nets[1]) == "too-long"
    found = Reader(nets[1], BOOK).read(key, [data, bytes(POINTER_MAX + 1)], NOW)
    assert len(found.pointers) == 1 and found.rejected == {"too-long": 1}


def test_revoked(tmp_path):
    a, b = members(tmp_path, "ab")
    reader = Reader(a, BOOK)
    key, data = place(made(b), b)
    assert reader.read(key, [data], NOW).pointers
    a.revoke(a.find("peer-b"), 1)
    # Also what the reader remembers to have verified.
    assert reader.read(key, [data], NOW).rejected == {"revoked": 1}
    assert refused(data, key, a) == "revoked"
    assert b.public_key(b.gateway) and open_pointer(data, key, b, BOOK, NOW)


def test_tokens(nets, open_nets):
    one = made(nets[0])
    key = one.key(nets[0])
    assert one.token(nets[0]) == one._replace(epoch=1, flags=0).token(nets[0])
    assert one.token(nets[0]) == one.withdrawal(9).token(nets[0])
    assert one.token(nets[0]) != one._replace(id=bytes(16)).token(nets[0])
    assert one.token(nets[0]) != one.token(open_nets[0]) and len(one.token(nets[0])) == 16
    assert key != one._replace(label=3).key(nets[0])


def test_what_a_node_sees(nets):
    """The stored value of a sealed network: nothing of it can be told from noise."""
    one = made(nets[0])
    data = place(one, nets[0])[1]
    for part in (one.gateway, one.id, one.sketch[:6], one.domain, one.endpoint.encode()):
        assert part not in data
    values = b"".join(place(one, nets[0])[1][16:] for _ in range(200))
    counts = np.bincount(np.frombuffer(values, np.uint8), minlength=256)
    assert counts.max() < 1.5 * len(values) / 256
