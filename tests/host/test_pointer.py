"""Pointers: bytes, every way in which one can be bad, and code that is not ours.

The tests print the sizes that SPEC.md tells (run with -s).
"""

import hashlib
import hmac
import os
import re
import time
from pathlib import Path

import cbor2
import numpy as np
import pycddl
import pytest
from codebook_kit import clustered, codebook
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cwt import COSE, COSEKey
from hypothesis import given, settings
from hypothesis import strategies as st
from network_kit import KEY, member, members

from gateway import pointer as module
from gateway.cells import CELL_MAX, assign, levels, path_key, settle
from gateway.pointer import (
    AGENT,
    AHEAD_MAX_S,
    CONFIRMED,
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
from gateway.reader import KEY_MAX, VALUES_MAX, Reader
from gateway.sketch import INT4, INT8, SIGN

ROOT = Path(__file__).resolve().parents[2]
CDDL = (ROOT / "gateway" / "pointer.cddl").read_text()
BOOK = codebook(INT4)
LEVELS = levels(BOOK)
NOW = 1_800_000_000
SCHEMAS = {kind: pycddl.Schema(f"start = {rule}\n{CDDL}") for kind, rule in module.KINDS.items()}


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


# ---- many values under one key ------------------------------------------------------


def crowd(net, count, first=0):
    """(key, pointers) of one gateway: distinct outcomes in one cell."""
    one = made(net)
    return one.key(net), [
        one._replace(id=hashlib.sha256(b"%d" % i).digest()[:16], epoch=NOW - 1000 + i % 900)
        for i in range(first, first + count)
    ]


def test_ten_thousand_pointers_of_one_gateway(tmp_path):
    nets = members(tmp_path, "abcd")
    key, flood = crowd(nets[0], 10_000)
    values = [seal(one, nets[0], nets[0].crypto) for one in flood]
    others = [seal(one, net, net.crypto) for net in nets[1:] for one in crowd(net, 12, 20_000)[1]]
    reader = Reader(nets[1], BOOK)
    begin = time.perf_counter()
    found = reader.read(key, values + others, NOW)
    seconds = time.perf_counter() - begin
    count = {net.gateway: 0 for net in nets}
    for one in found.pointers:
        count[one.gateway] += 1
    assert list(count.values()) == [KEY_MAX - 36, 12, 12, 12]
    assert found.rejected == {"too-many": 10_000 - (KEY_MAX - 36)} == reader.rejected
    # The newest are taken.
    assert min(o.epoch for o in found.pointers if o.gateway == nets[0].gateway) >= NOW - 1000 + 895
    print(f"\n10,036 values read in {seconds:.2f} s, {len(reader._verified)} signatures checked")
    assert len(reader._verified) == KEY_MAX
    again = time.perf_counter()
    assert reader.read(key, values + others, NOW).pointers == found.pointers
    print(f"again in {time.perf_counter() - again:.2f} s")


def test_forgeries_in_anothers_name_hide_nobody_else(tmp_path):
    a, b, c, d = members(tmp_path, "abcd")
    key, claims = crowd(a, 3000)
    forged = [independent(one._replace(epoch=NOW), b)[1] for one in claims]
    good = [seal(one, c, c.crypto) for one in crowd(c, 10)[1]]
    reader = Reader(d, BOOK, signatures=200)
    for verify in (True, False):
        found = reader.read(key, forged + good, NOW, verify)
        assert {one.gateway for one in found.pointers} == {c.gateway}
        assert len(found.pointers) == 10
        assert found.rejected["bad-signature"] + found.rejected["too-many"] == 3000
        assert found.rejected["bad-signature"] <= 200


def test_a_lower_limit_for_one_gateway(open_nets):
    key, claims = crowd(open_nets[0], 40)
    values = [seal(c, open_nets[0], open_nets[0].crypto) for c in claims]
    assert len(Reader(open_nets[1], BOOK).read(key, values, NOW).pointers) == 40
    found = Reader(open_nets[1], BOOK, share=16).read(key, values, NOW)
    assert len(found.pointers) == 16 and found.rejected == {"too-many": 24}


def test_a_key_is_cut(tmp_path):
    nets = members(tmp_path, "abcdefghij")
    values = [seal(one, net, net.crypto) for net in nets for one in crowd(net, 11)[1]]
    key = made(nets[0]).key(nets[0])
    found = Reader(nets[0], BOOK).read(key, values, NOW)
    assert len(found.pointers) == KEY_MAX and found.rejected == {"too-many": 110 - KEY_MAX}
    assert {one.gateway for one in found.pointers} == {net.gateway for net in nets}


def test_more_values_than_are_looked_at(nets):
    key, data = place(made(nets[0]), nets[0])
    values = [data] + [b"%d" % i for i in range(VALUES_MAX + 9)]
    found = Reader(nets[0], BOOK).read(key, values, NOW)
    assert len(found.pointers) == 1
    assert found.rejected == {"too-many": 10, "not-cbor": VALUES_MAX - 1}


def test_equal_values_count_once(nets):
    key, data = place(made(nets[0]), nets[0])
    found = Reader(nets[1], BOOK).read(key, [data] * 500, NOW)
    assert len(found.pointers) == 1 and not found.rejected
    # Sealed anew, the epoch the same: still one pointer, and nobody's fault.
    found = Reader(nets[1], BOOK).read(key, [data, place(made(nets[0]), nets[0])[1]], NOW)
    assert len(found.pointers) == 1 and not +found.rejected


def test_replayed(nets):
    a, b, _ = nets
    old = made(a, epoch=100)
    new = made(a, epoch=101, confidence=5)
    key = old.key(a)
    before, after = seal(old, a, a.crypto), seal(new, a, a.crypto)
    reader = Reader(b, BOOK)
    assert reader.read(key, [before], NOW).pointers == [old]
    found = reader.read(key, [before, after], NOW)
    assert found.pointers == [new] and found.rejected == {"replayed": 1}
    # Alone it is refused too: the reader remembers.
    assert reader.read(key, [before], NOW) == ([], frozenset(), {"replayed": 1})
    gone = seal(new.withdrawal(102), a, a.crypto)
    assert reader.read(key, [before, after, gone], NOW).pointers == []
    assert reader.read(key, [after], NOW) == ([], frozenset(), {"replayed": 1})
    # A reader that starts anew sees it until it expires: SPEC.md says so.
    assert Reader(b, BOOK).read(key, [after], NOW).pointers == [new]
    back = seal(new._replace(epoch=103), a, a.crypto)
    assert reader.read(key, [gone, back], NOW).pointers[0].epoch == 103


def test_withdrawal_and_pointer_of_one_epoch(nets):
    a, b, _ = nets
    one = made(a, epoch=7)
    values = [seal(one, a, a.crypto), seal(one.withdrawal(7), a, a.crypto)]
    for order in (values, values[::-1]):
        assert Reader(b, BOOK).read(one.key(a), order, NOW).pointers == []


def test_replays_are_kept_apart_by_key(nets):
    """An outcome announced under two codebook versions or levels is at both."""
    a, b, _ = nets
    reader = Reader(b, BOOK)
    high, low = made(a, level=2, epoch=9), made(a, level=1, epoch=8)
    for one in (high, low):
        assert reader.read(one.key(a), [seal(one, a, a.crypto)], NOW).pointers == [one]


def test_split_markers(nets):
    a, b, c = nets
    reader = Reader(b, BOOK)
    marker = made(a, kind=MARKER)
    key = marker.key(a)
    assert key == made(a).key(a)
    values = [seal(made(a, kind=MARKER, epoch=i), a, a.crypto) for i in range(50)]
    values.append(place(made(c, kind=MARKER), c)[1])
    values.append(place(made(a), a)[1])
    found = reader.read(key, values, NOW)
    assert found.split and found.markers == {a.gateway, c.gateway}
    assert len(found.pointers) == 1 and not +found.rejected
    forged = independent_body(marker, c, {10: None, 11: None, 13: None, 7: None, 6: a.gateway})[1]
    found = reader.read(key, [forged], NOW, verify=False)
    assert not found.split and found.rejected == {"bad-signature": 1}
    # A flood does not bury the marker.
    _, flood = crowd(a, 300)
    values = [seal(one, a, a.crypto) for one in flood]
    assert reader.read(key, [*values, seal(marker, a, a.crypto)], NOW).split


def test_withdrawals_do_not_crowd_out_pointers(nets):
    a, b, _ = nets
    key, many = crowd(a, 120)
    values = [seal(one.withdrawal(NOW), a, a.crypto) for one in many[20:]]
    values += [seal(one, a, a.crypto) for one in many[:20]]
    found = Reader(b, BOOK).read(key, values, NOW)
    assert len(found.pointers) == 20 and found.rejected == {"too-many": 100 - 64}


def test_signatures_can_wait(nets):
    a, b, c = nets
    key, many = crowd(a, 10)
    values = [seal(one, a, a.crypto) for one in many[:8]]
    values.append(independent(many[9], c)[1])
    reader = Reader(b, BOOK)
    found = reader.read(key, values, NOW, verify=False)
    assert len(found.claims) == 9 and not reader._verified
    good = reader.confirm(found.claims)
    assert sorted(good) == sorted(many[:8]) and reader.rejected == {"bad-signature": 1}
    # With two values for one outcome, one could hide the other: then they are verified.
    values.append(independent(many[0]._replace(epoch=NOW), c)[1])
    found = Reader(b, BOOK).read(key, values, NOW, verify=False)
    assert sorted(found.pointers) == sorted(many[:8])


def test_room_for_the_publisher(tmp_path):
    a, b, c, d = members(tmp_path, "abcd")
    reader = Reader(a, BOOK, share=16)
    one = made(a, level=LEVELS)
    full, key = one.path, made(a).key(a)
    own = [seal(o, a, a.crypto) for o in crowd(a, 15)[1]]
    found = reader.read(key, own, NOW)
    assert reader.room(found) == (15, False)
    assert reader.room(found, crowd(a, 1)[1][0].id) == (14, False)
    assert settle(full, {full[:1]: reader.room(found)}).place == full[:1]
    own = [seal(o, a, a.crypto) for o in crowd(a, 16)[1]]
    found = reader.read(key, own, NOW)
    assert reader.room(found) == (CELL_MAX, False)
    decided = settle(full, {full[:1]: reader.room(found)})
    assert decided.read == full[:2] and decided.place is None
    decided = settle(full, {full[:1]: reader.room(found), full[:2]: (0, False)})
    assert (decided.place, decided.markers) == (full[:2], [full[:1]])


def test_bad_sketches_in_a_batch(nets):
    """int4 code -8 is no code; one such sketch does not spoil the others."""
    net, other = nets[:2]
    one = made(net)
    bad = [independent_body(one._replace(id=bytes([i] * 16)), net, {11: b"\x88" * 32})[1]
           for i in range(5)]  # fmt: skip
    found = Reader(other, BOOK).read(one.key(net), [*bad, place(one, net)[1]], NOW)
    assert found.pointers == [one] and found.rejected == {"misplaced": 5}


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
