"""Sketches: the same bits from a slow reading of the definition, and from any junk an error."""

import numpy as np
import pytest
from codebook_kit import decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.cpython.signer import HostCrypto
from edge_agent.fingerprint import Projection, signed
from gateway.sketch import (
    DECODER_BYTES,
    INT4,
    INT8,
    KINDS,
    SIGN,
    SIZES,
    Sketcher,
    SketchError,
    as_rows,
)

CRYPTO = HostCrypto()
DOMAIN = bytes(range(8))
OFFSET = bytes((i * 5 - 100) & 255 for i in range(64))
DECODER = np.random.default_rng(7).integers(-999, 1000, (257, 64))
STEPS = [1 + i % 20 for i in range(64)]
VECTORS = st.binary(min_size=64, max_size=64)
SLOW = Projection(CRYPTO, DOMAIN, b"sk", 256, 64, lean=True)
SKETCHERS = {
    INT4: Sketcher(INT4, DOMAIN, STEPS, OFFSET),
    SIGN: Sketcher(SIGN, DOMAIN, DECODER.astype(">i2").tobytes(), OFFSET),
    INT8: Sketcher(INT8, DOMAIN),
}


def clamp(value, limit=127):
    return max(-limit, min(limit, value))


def slow_encode(kind, vector):
    values = [v - o for v, o in zip(signed(vector), signed(OFFSET), strict=True)]
    if kind == INT8:
        return bytes(clamp(v) & 255 for v in signed(vector))
    if kind == SIGN:
        return SLOW.signs(values)
    codes = []
    for value, step in zip(values, STEPS, strict=True):
        # Halves away from zero.
        code = (2 * abs(value) + step) // (2 * step)
        codes.append(clamp(-code if value < 0 else code, 7) & 15)
    return bytes(codes[i] << 4 | codes[i + 1] for i in range(0, 64, 2))


def slow_decode(kind, sketch):
    if kind == INT8:
        return sketch
    offset = signed(OFFSET)
    out = []
    if kind == SIGN:
        for column in DECODER.T.tolist():
            total = column[0]
            for j, number in enumerate(column[1:]):
                total += number if sketch[j // 8] >> (7 - j % 8) & 1 else -number
            out.append(clamp((total + 32) >> 6))
    else:
        for i, (step, o) in enumerate(zip(STEPS, offset, strict=True)):
            code = sketch[i // 2] >> (0 if i % 2 else 4) & 15
            out.append(clamp(o + (code - 16 if code > 7 else code) * step))
    return bytes(v & 255 for v in out)


@pytest.mark.parametrize("kind", SIZES)
@settings(max_examples=60, deadline=None)
@given(vector=VECTORS)
def test_same_bits_as_the_definition(kind, vector):
    sketcher = SKETCHERS[kind]
    sketch = sketcher.encode(vector)
    assert len(sketch) == sketcher.size == SIZES[kind]
    assert sketch == slow_encode(kind, vector)
    assert sketcher.decode(sketch) == slow_decode(kind, sketch)
    assert sketcher.rounded(vector) == sketcher.decode(sketch)


@pytest.mark.parametrize("kind", [INT4, INT8])
@settings(max_examples=60, deadline=None)
@given(vector=VECTORS)
def test_a_decoded_vector_is_its_own_sketch(kind, vector):
    """Else a gateway that re-announces what it fetched would drift. Within the clamp only."""
    sketcher = Sketcher(kind, DOMAIN, 9)
    once = sketcher.rounded(vector)
    assert sketcher.rounded(once) == once


@pytest.mark.parametrize("kind", SIZES)
def test_many_are_the_same_as_one(kind):
    sketcher = SKETCHERS[kind]
    rows = np.random.default_rng(1).integers(-128, 128, (50, 64)).astype(np.int8)
    sketches = sketcher.encode_many(rows)
    decoded = sketcher.decode_many(sketches)
    for row, sketch, back in zip(rows, sketches, decoded, strict=True):
        assert sketcher.encode(row.tobytes()) == sketch.tobytes()
        assert sketcher.decode(sketch.tobytes()) == back.tobytes()


def test_codes_that_nobody_makes_are_refused():
    for kind, bad in (
        (INT4, b"\x80" + bytes(31)),
        (INT4, b"\x08" + bytes(31)),
        (INT8, b"\x80" * 64),
    ):
        with pytest.raises(SketchError) as caught:
            SKETCHERS[kind].decode(bad)
        assert caught.value.reason == "code"
    for kind, size in SIZES.items():
        for wrong in (0, size - 1, size + 1):
            with pytest.raises(SketchError) as caught:
                SKETCHERS[kind].decode(bytes(wrong))
            assert caught.value.reason == "length"


def test_settings_are_checked():
    for kind, step, offset in (
        (9, 1, bytes(64)),
        (INT4, 0, bytes(64)),
        (INT4, 128, bytes(64)),
        (INT4, [1] * 63, bytes(64)),
        (SIGN, 8, bytes(64)),
        (SIGN, bytes(100), bytes(64)),
        (INT4, 1, bytes(63)),
    ):
        with pytest.raises(ValueError):
            Sketcher(kind, DOMAIN, step, offset)
    made = {n: Sketcher(n, DOMAIN, bytes(DECODER_BYTES) if n == "sign256" else 8) for n in KINDS}
    assert {name: one.kind for name, one in made.items()} == KINDS
    with pytest.raises(ValueError):
        SKETCHERS[INT4].encode(bytes(63))


def test_rows_of_bytes():
    one, two = bytes(range(64)), bytes(64)
    assert as_rows(one).shape == (1, 64)
    assert as_rows([one, two])[1].tobytes() == two
    assert as_rows(as_rows([one, two])).shape == (2, 64)
    with pytest.raises(ValueError):
        as_rows(bytes(65))
    with pytest.raises(ValueError):
        as_rows(np.zeros((2, 64), np.int16))


@pytest.mark.parametrize("kind", [INT4, SIGN, INT8])
def test_sketches_keep_what_is_near(kind):
    """A sketch that forgot everything would pass the tests above."""
    rng = np.random.default_rng(3)
    base = rng.normal(0, 35, (200, 64))
    twin = np.clip(base + rng.normal(0, 4, base.shape), -127, 127).astype(np.int8)
    base = np.clip(base, -127, 127).astype(np.int8)
    sketcher = Sketcher(kind, DOMAIN, decoder(DOMAIN) if kind == SIGN else 12)
    a = sketcher.decode_many(sketcher.encode_many(base)).astype(float)
    b = sketcher.decode_many(sketcher.encode_many(twin)).astype(float)
    distance = ((a[:, None] - b[None]) ** 2).sum(2)
    assert (distance.argmin(1) == np.arange(200)).mean() > 0.98
