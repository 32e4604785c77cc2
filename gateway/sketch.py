"""Sketches: the few bytes a pointer carries so that pointers can be ranked and placed.

A sketch is a coarse copy of an outcome's 64 int8 numbers. What counts afterwards is never
the vector itself but `decode(sketch)`: the publisher places its pointer by it, the reader
checks the place with it, the querier ranks by it. All arithmetic is on integers, so three
parties that never met agree bit for bit.

int4x64   32 bytes. q = clamp(round((v - offset) / step), -7, 7) per number, halves away from
          zero; two per byte, the first in the high half, two's complement (-8 is refused).
          decode: clamp(offset + q * step, -127, 127).
sign256   32 bytes. Bit j = 1 when row j of a fixed 256 x 64 matrix of +-1 (purpose "sk", see
          edge_agent.fingerprint) gives >= 0 for v - offset. decode is linear, by 257 rows of 64
          16-bit numbers in 1/64: clamp((row 0 + sum of +-row j+1) + 32 >> 6, -127, 127), + for
          a bit of 1. The rows are fitted to the vectors that the codebook was trained on.
int8      64 bytes, the vector itself: nothing is hidden.

Offset, steps and decoder belong to the codebook, which learns them from its training vectors:
an embedding behind a ReLU is never negative, and without an offset half of the codes would
be wasted; a decoder that knows how the 64 numbers go together undoes far more of the signs
than adding up the matrix's own rows. A sign sketch leaks less and finds less; it needs a
codebook of its own.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge_agent.cpython.signer import HostCrypto
from edge_agent.errors import RemoteError
from edge_agent.fingerprint import VECTOR_BYTES, Projection
from edge_agent.interfaces import Crypto

Int8 = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]

INT4, SIGN, INT8 = 1, 2, 3
KINDS = {"int4x64": INT4, "sign256": SIGN, "int8": INT8}
NAMES = {number: name for name, number in KINDS.items()}
SIZES = {INT4: 32, SIGN: 32, INT8: 64}
PURPOSE_SKETCH = b"sk"
ROWS = 256
DECODER_SHIFT = 6
DECODER_BYTES = (ROWS + 1) * VECTOR_BYTES * 2


class SketchError(RemoteError):
    """A sketch that no sketcher makes. Reasons: "length", "code"."""


class Sketcher:
    """One kind of sketch for one domain.

    kind: a number or name of KINDS.  step: for int4x64 one step (1..127) for all numbers, or
    64 of them; for sign256 the decoder, 257 x 64 big-endian int16; unused for int8.  offset:
    64 int8 values, subtracted before and, for int4x64, added after.
    """

    def __init__(
        self,
        kind: "int | str",
        domain_id: bytes,
        step: "int | bytes | Sequence[int]" = 8,
        offset: bytes = bytes(VECTOR_BYTES),
        crypto: "Crypto | None" = None,
    ) -> None:
        self.kind = KINDS[kind] if isinstance(kind, str) else kind
        if self.kind not in SIZES:
            raise ValueError(f"sketch kind {kind}, known: {', '.join(KINDS)}")
        self.size = SIZES[self.kind]
        self.name = NAMES[self.kind]
        if len(offset) != VECTOR_BYTES:
            raise ValueError(f"offset of {len(offset)} bytes, {VECTOR_BYTES} wanted")
        self.offset = np.frombuffer(offset, np.int8).astype(np.int32)
        if self.kind == SIGN:
            if not isinstance(step, bytes) or len(step) != DECODER_BYTES:
                raise ValueError(f"step: a decoder of {DECODER_BYTES} bytes wanted")
            self._rows = projection_rows(domain_id, crypto)
            table = np.frombuffer(step, ">i2").reshape(ROWS + 1, VECTOR_BYTES)
            self._bias, self._decoder = table[0].astype(np.int64), table[1:].astype(np.float32)
            return
        steps = [step] * VECTOR_BYTES if isinstance(step, int) else list(step)
        if len(steps) != VECTOR_BYTES or not all(1 <= s <= 127 for s in steps):
            raise ValueError(f"step: 1 or {VECTOR_BYTES} numbers within 1..127 wanted")
        self.steps = np.array(steps, np.int32)

    def encode(self, vector: bytes) -> bytes:
        """The sketch of 64 int8 values."""
        if len(vector) != VECTOR_BYTES:
            raise ValueError(f"vector of {len(vector)} bytes, {VECTOR_BYTES} wanted")
        return bytes(self.encode_many(np.frombuffer(vector, np.int8)[None])[0])

    def decode(self, sketch: bytes) -> bytes:
        """The 64 int8 values that stand for the sketch. SketchError."""
        if len(sketch) != self.size:
            raise SketchError("length", f"{len(sketch)} bytes, {self.name} has {self.size}")
        return bytes(self.decode_many(np.frombuffer(sketch, np.uint8)[None])[0].view(np.uint8))

    def rounded(self, vector: bytes) -> bytes:
        """decode(encode(vector))."""
        return self.decode(self.encode(vector))

    def encode_many(self, vectors: Int8) -> Bytes:
        """(n, 64) int8 -> (n, size) uint8."""
        values = vectors.astype(np.int32)
        if self.kind == INT8:
            return np.maximum(values, -127).astype(np.int8).view(np.uint8)
        values -= self.offset
        if self.kind == SIGN:
            # Sums of 64 integers below 2^9: exact in float32, which the fast product wants.
            sums = values.astype(np.float32) @ self._rows.T
            return np.packbits(sums >= 0, axis=1)
        size = (2 * np.abs(values) + self.steps) // (2 * self.steps)
        codes = np.where(values < 0, -1, 1) * np.minimum(size, 7)
        low = (codes & 15).astype(np.uint8)
        out: Bytes = low[:, 0::2] << 4 | low[:, 1::2]
        return out

    def decode_many(self, sketches: Bytes) -> Int8:
        """(n, size) uint8 -> (n, 64) int8. SketchError when any of them is none."""
        if sketches.ndim != 2 or sketches.shape[1] != self.size:
            raise SketchError("length", f"{sketches.shape}, {self.name} has {self.size}")
        if self.kind == INT8:
            if (sketches == 0x80).any():
                raise SketchError("code", "-128")
            return sketches.view(np.int8).copy()
        if self.kind == SIGN:
            # 256 numbers of 16 bits add up to less than 2^24: exact in float32.
            sums = (signs(sketches) @ self._decoder).astype(np.int64) + self._bias
            values = (sums + (1 << DECODER_SHIFT - 1)) >> DECODER_SHIFT
        else:
            codes = np.empty((len(sketches), VECTOR_BYTES), np.int32)
            codes[:, 0::2] = sketches >> 4
            codes[:, 1::2] = sketches & 15
            if (codes == 8).any():
                raise SketchError("code", "-8")
            values = (((codes ^ 8) - 8) * self.steps + self.offset).astype(np.int64)
        out: Int8 = np.clip(values, -127, 127).astype(np.int8)
        return out


def signs(sketches: Bytes) -> npt.NDArray[np.float32]:
    """(n, 32) sign sketches -> (n, 256) of +-1."""
    return np.unpackbits(sketches, axis=1).astype(np.float32) * 2 - 1


def decoder_bytes(bias: npt.NDArray[np.float64], rows: npt.NDArray[np.float64]) -> bytes:
    """The decoder of a sign sketch from what is added always, (64,), and by bit, (256, 64)."""
    table = np.concatenate([bias[None], rows]) * (1 << DECODER_SHIFT)
    return bytes(np.clip(np.rint(table), -32768, 32767).astype(">i2").tobytes())


def projection_rows(
    domain_id: bytes,
    crypto: "Crypto | None" = None,
    purpose: bytes = PURPOSE_SKETCH,
    rows: int = ROWS,
) -> npt.NDArray[np.float32]:
    """The (rows, 64) matrix of +-1 that the shared projection of `domain_id` applies."""
    projection = Projection(crypto or HostCrypto(), domain_id, purpose, rows, VECTOR_BYTES)
    unit = np.eye(VECTOR_BYTES, dtype=int).tolist()
    return np.array([projection.apply(row) for row in unit], np.float32).T.copy()


def as_rows(vectors: "Int8 | bytes | Sequence[bytes]") -> Int8:
    """(n, 64) int8 of one vector, several, or an array that is one already."""
    if isinstance(vectors, np.ndarray):
        rows = vectors.reshape(-1, vectors.shape[-1]) if vectors.size else vectors
        if rows.dtype != np.int8 or rows.shape[-1] != VECTOR_BYTES:
            raise ValueError(f"{rows.dtype} {rows.shape}, int8 (n, {VECTOR_BYTES}) wanted")
        return rows
    joined = bytes(vectors) if isinstance(vectors, bytes) else b"".join(vectors)
    if len(joined) % VECTOR_BYTES:
        raise ValueError(f"{len(joined)} bytes are no vectors of {VECTOR_BYTES}")
    return np.frombuffer(joined, np.int8).reshape(-1, VECTOR_BYTES)
