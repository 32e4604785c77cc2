"""The codebook: a signed, public, versioned quantiser of one domain's vector space.

Two levels of int8 centroids (usually 256 and 16 in each) divide the space into regions; cells
are made of them (see cells.py). With the centroids come the settings of the sketch, because a
cell is a function of the decoded sketch and of nothing else. A codebook is trained once from
public or consented vectors (train.py) and signed by the domain's owner; at run time nobody
coordinates anything.

The file is a COSE_Sign1 (Ed25519) around a CBOR map:

    1 domain id, 8 bytes        2 version u16           3 sketch kind
    4 steps: 64 x u8 (int4x64); decoder: 257 x 64 x int16, big endian (sign256); 0 (int8)
    5 offset: 64 x int8         6 radius u16, 0 for none
    7 centroids of level 1: k1 x 64 int8                8 of level 2: k1 x k2 x 64 int8
    9 similarity                10 vectors trained on   11 note, text     12 owner, 32 bytes
    13 spreads: k1 x 4 x u32, big endian, of the positions on the four directions (cells.py)

    id = first 8 bytes of SHA-256(file)

k1 and k2 are powers of two, and the order of centroids matters: the bits of an index are a
way down a tree that halves the regions again and again, neighbours staying together.

**Radius.** Under cosine the length of a vector means nothing, but squared distance would see
it. With a radius R every decoded vector is brought to length R before it meets centroids:
w = clamp((2 v R + n) // 2n, -127, 127), n = isqrt(v . v), halves up; the zero vector stays.

**Exactness.** Nearest means least squared distance over integers, ties to the lowest index.
All products of int8 rows of 64 stay below 2^24, so that float32 matrix products of them are
exact whatever the order of summation; they are used for speed and turned back to integers.

**Directions** (four per level-1 region) are where its level-2 centroids differ most: with M the
64 x 64 matrix of sums of products of (centroid - floor of their mean), power iteration in
integers. Row j starts from +-1, bits 64 j .. 64 j + 63 of SHA-256("qis cut" | domain id |
version u16 | region u16), most significant first, 1 is +1. Sixteen times: x = M x; for every
earlier row d: x -= d (x . d) // (d . d); then x = x 32767 // max |x|. At the end
x = x 127 // max |x|. A row that comes to nothing on the way stays at its start.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent import cbor, cose
from edge_agent.domain import Domain
from edge_agent.errors import CborError, CoseError, RemoteError
from edge_agent.fingerprint import VECTOR_BYTES
from edge_agent.interfaces import Crypto
from gateway.sketch import DECODER_BYTES, INT8, SIGN, SIZES, Int8, Sketcher, as_rows

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

FILE_MAX = 400_000
K1_MAX, K2_MAX = 1024, 64
DIRECTIONS = 4
RADIUS_MAX = 1023
NOTE_MAX = 400
SIMILARITY_MAX = 64
_AAD = b"qis codebook"
_CONTENT_TYPE = 65011


class CodebookError(RemoteError):
    """A codebook that is damaged, badly signed, or not for this domain.

    Reasons: "too-long", "not-cbor", "not-cose", "bad-signature", "wrong-owner",
    "wrong-domain", "missing-field", "bad-field".
    """


class Codebook:
    """A loaded codebook. `load` makes one; the attributes are read-only."""

    def __init__(self, data: bytes, content: "dict[Any, Any]", crypto: Crypto) -> None:
        self.data = data
        self.id: bytes = hashlib.sha256(data).digest()[:8]
        self.domain_id: bytes = content[1]
        self.version: int = content[2]
        self.kind: int = content[3]
        self.radius: int = content[6]
        self.similarity: str = content[9]
        self.trained_on: int = content[10]
        self.note: str = content[11]
        self.owner: bytes = content[12]
        self.centroids1: Int8 = np.frombuffer(content[7], np.int8).reshape(-1, VECTOR_BYTES)
        self.k1 = len(self.centroids1)
        self.centroids2: Int8 = np.frombuffer(content[8], np.int8).reshape(
            self.k1, -1, VECTOR_BYTES
        )
        self.k2 = self.centroids2.shape[1]
        self.spread: Ints = np.frombuffer(content[13], ">u4").reshape(-1, DIRECTIONS)
        self.spread = self.spread.astype(np.int64)
        self.levels1 = self.k1.bit_length() - 1
        self.levels2 = self.k2.bit_length() - 1
        self._directions: dict[int, Ints] = {}
        self._gaps: tuple[Floats, Floats] | None = None
        self.sketcher = Sketcher(self.kind, self.domain_id, content[4] or 1, content[5], crypto)
        self._flat1 = Nearest(self.centroids1)
        self._flat2 = [Nearest(rows) for rows in self.centroids2]

    @staticmethod
    def load(
        data: bytes, crypto: Crypto, domain: "Domain | None" = None, verify: bool = True
    ) -> "Codebook":
        """Read a codebook file, at most 400 kB.

        domain: refuse a codebook of another domain, or signed by another than its owner.
        verify: check the signature. CodebookError.
        """
        if len(data) > FILE_MAX:
            raise CodebookError("too-long", f"{len(data)} bytes")
        try:
            message = cose.parse(data, 64)
            content = cbor.decode(message.payload, 3, 64)
        except CborError as error:
            raise CodebookError("not-cbor", str(error))
        except CoseError as error:
            raise CodebookError("not-cose", str(error))
        if not isinstance(content, dict):
            raise CodebookError("bad-field", "content is no map")
        _check(content)
        if domain is not None:
            if content[1] != domain.id:
                raise CodebookError("wrong-domain", content[1].hex())
            if content[12] != domain.owner:
                raise CodebookError("wrong-owner", content[12].hex())
        if verify:
            if message.protected.get(cose.HDR_TYP) != _CONTENT_TYPE:
                raise CodebookError("bad-signature", "made for another purpose")
            try:
                cose.verify_sign1(crypto, content[12], message, _AAD)
            except CoseError as error:
                raise CodebookError("bad-signature", str(error))
        return Codebook(bytes(data), content, crypto)

    def place(self, decoded: "Int8 | bytes") -> Int8:
        """(n, 64) decoded vectors as centroids see them: of one length where one is fixed."""
        return to_radius(as_rows(decoded), self.radius)

    def nearest(self, placed: Int8) -> "tuple[Ints, Ints]":
        """For each of (n, 64): the level-1 region, and the level-2 region within it."""
        first = self._flat1.nearest(placed)
        second = np.zeros(len(placed), np.int64)
        for a in np.unique(first).tolist():
            members = np.flatnonzero(first == a)
            second[members] = self._flat2[a].nearest(placed[members])
        return first, second

    def distances(self, placed: Int8) -> "tuple[Ints, Ints]":
        """Squared distances of one vector to every centroid: (k1,) and (k1, k2)."""
        second = self.centroids2.reshape(-1, VECTOR_BYTES)
        return (
            squared(placed, self.centroids1)[0],
            squared(placed, second)[0].reshape(self.k1, self.k2),
        )

    def margins(self, placed: Int8) -> "tuple[Floats, Floats]":
        """How far one vector is outside of regions: (k1,) and (k1, k2).

        A region ends half-way to other centroids of its level: the distance to the farthest of
        these half-way planes, 0 within. Level 2 among the regions of the same level-1 region.
        """
        if self._gaps is None:
            gaps1 = _gaps(self.centroids1)
            self._gaps = gaps1, np.stack([_gaps(rows) for rows in self.centroids2])
        first, second = (found.astype(np.float64) for found in self.distances(placed))
        gaps1, gaps2 = self._gaps
        outside1: Floats = ((first[:, None] - first) / gaps1).max(1)
        outside2: Floats = ((second[:, :, None] - second[:, None]) / gaps2).max(2)
        return np.maximum(outside1, 0), np.maximum(outside2, 0)

    def directions(self, first: int) -> Ints:
        """(4, 64): along which the parts of level-1 region `first` are cut further."""
        found = self._directions.get(first)
        if found is None:
            found = directions(self.domain_id, self.version, first, self.centroids2[first])
            self._directions[first] = found
        return found

    def __repr__(self) -> str:
        return (
            f"Codebook({self.id.hex()}, domain {self.domain_id.hex()}, version {self.version}, "
            f"{self.k1} x {self.k2}, {self.sketcher.name})"
        )


def make_codebook(
    crypto: Crypto,
    private_key: bytes,
    domain: Domain,
    version: int,
    kind: int,
    step: "int | bytes",
    offset: bytes,
    radius: int,
    centroids1: Int8,
    centroids2: Int8,
    spread: Ints,
    trained_on: int,
    note: str = "",
) -> bytes:
    """The signed file. step: 64 bytes for int4x64, decoder for sign256, 0 for int8.

    CodebookError when a reader would refuse it: a key that is not the domain owner's, too.
    """
    content = {
        1: domain.id,
        2: version,
        3: kind,
        4: step,
        5: offset,
        6: radius,
        7: centroids1.tobytes(),
        8: centroids2.tobytes(),
        9: domain.similarity,
        10: trained_on,
        11: note,
        12: domain.owner,
        13: spread.astype(">u4").tobytes(),
    }
    header = {cose.HDR_ALG: cose.ALG_EDDSA, cose.HDR_TYP: _CONTENT_TYPE}
    data = cose.sign1(crypto, private_key, header, cbor.encode(content), _AAD)
    Codebook.load(data, crypto, domain)
    return data


def in_use(
    codebooks: "Sequence[tuple[Codebook, int]]", now_s: int, lifetime_s: int
) -> "list[Codebook]":
    """The versions to announce under, and to ask in this order: newest first.

    codebooks: each with the time it came into use here, of one domain and sketch kind.  The
    version before the newest stays for one lifetime of a pointer: until then others may have
    announced under it only, or may look nowhere else.
    """
    ordered = sorted(codebooks, key=lambda pair: pair[0].version, reverse=True)
    known = [pair for pair in ordered if pair[1] <= now_s] or ordered[-1:]
    chosen = [codebook for codebook, _ in known[:1]]
    if len(known) > 1 and now_s < known[0][1] + lifetime_s:
        chosen.append(known[1][0])
    return chosen


def to_radius(rows: Int8, radius: int) -> Int8:
    """Rows brought to a length, in integers; unchanged for radius 0."""
    if not radius or not len(rows):
        return rows
    wide = rows.astype(np.int64)
    square = (wide * wide).sum(1)
    # The root of a number below 2^53 is right to the last bit but one: floor, then check.
    length = np.sqrt(square.astype(np.float64)).astype(np.int64)
    length -= length * length > square
    length += (length + 1) * (length + 1) <= square
    length = np.maximum(length, 1)[:, None]
    scaled = (2 * wide * radius + length) // (2 * length)
    out: Int8 = np.clip(scaled, -127, 127).astype(np.int8)
    return out


def squared(a: Int8, b: Int8) -> Ints:
    """(len(a), len(b)) squared distances."""
    left, right = a.astype(np.float32), b.astype(np.float32)
    dots = (left @ right.T).astype(np.int64)
    ones = (left * left).sum(1).astype(np.int64)
    others = (right * right).sum(1).astype(np.int64)
    out: Ints = ones[:, None] + others[None] - 2 * dots
    return out


def directions(domain_id: bytes, version: int, region: int, centroids: Int8) -> Ints:
    """(4, 64) rows of -127..127, as the head of this file defines them."""
    seed = b"qis cut" + domain_id + version.to_bytes(2, "big") + region.to_bytes(2, "big")
    bits = np.unpackbits(np.frombuffer(hashlib.sha256(seed).digest(), np.uint8))
    rows = bits.astype(np.int64).reshape(DIRECTIONS, VECTOR_BYTES) * 2 - 1
    wide = centroids.astype(np.int64)
    wide = wide - wide.sum(0) // len(wide)
    square = wide.T @ wide
    for j in range(DIRECTIONS):
        x = rows[j]
        for _ in range(16):
            x = square @ x
            for d in rows[:j]:
                x = x - d * int(x @ d) // int(d @ d)
            largest = int(np.abs(x).max())
            if not largest:
                break
            x = x * 32767 // largest
        else:
            rows[j] = x * 127 // int(np.abs(x).max())
    return rows


def _gaps(centroids: Int8) -> Floats:
    """Twice the distance between every two centroids; endless where there is none."""
    gaps: Floats = 2 * np.sqrt(squared(centroids, centroids).astype(np.float64))
    gaps[gaps == 0] = np.inf
    return gaps


class Nearest:
    """The nearest of some centroids, ties to the lowest index."""

    def __init__(self, centroids: Int8) -> None:
        self.columns = centroids.astype(np.float32).T.copy()
        # |x|^2 is the same for all: least |c|^2 / 2 - x.c, kept whole by doubling.
        self.half = (self.columns * self.columns).sum(0)

    def nearest(self, rows: Int8) -> Ints:
        # |c|^2 - 2 x.c is below 2^22 in size: exact.
        found = [
            (self.half - 2 * (rows[i : i + 8192].astype(np.float32) @ self.columns)).argmin(1)
            for i in range(0, len(rows), 8192)
        ]
        return np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)


def _check(content: "dict[Any, Any]") -> None:
    """Every field there, of its type and within its range."""
    _bytes(content, 1, 8, "domain id")
    _number(content, 2, 0xFFFF, "version")
    kind = _number(content, 3, 255, "sketch kind")
    if kind not in SIZES:
        raise CodebookError("bad-field", f"sketch kind {kind}")
    if kind == SIGN:
        _bytes(content, 4, DECODER_BYTES, "decoder")
    elif kind == INT8:
        _number(content, 4, 0, "step")
    else:
        steps = _bytes(content, 4, VECTOR_BYTES, "steps")
        if not 1 <= min(steps) <= max(steps) <= 127:
            raise CodebookError("bad-field", "steps")
    _bytes(content, 5, VECTOR_BYTES, "offset")
    _number(content, 6, RADIUS_MAX, "radius")
    first = _bytes(content, 7, None, "centroids of level 1")
    second = _bytes(content, 8, None, "centroids of level 2")
    k1, left = divmod(len(first), VECTOR_BYTES)
    if left or not 2 <= k1 <= K1_MAX or k1 & (k1 - 1):
        raise CodebookError("bad-field", "centroids of level 1")
    k2, left = divmod(len(second), VECTOR_BYTES * k1)
    if left or not 1 <= k2 <= K2_MAX or k2 & (k2 - 1):
        raise CodebookError("bad-field", "centroids of level 2")
    _text(content, 9, SIMILARITY_MAX, "similarity")
    _number(content, 10, 0xFFFFFFFF, "vectors trained on")
    _text(content, 11, NOTE_MAX, "note")
    _bytes(content, 12, 32, "owner")
    _bytes(content, 13, 4 * k1 * DIRECTIONS, "spreads")


def _get(content: "dict[Any, Any]", label: int, kind: type, what: str) -> Any:
    value = content.get(label)
    if value is None:
        raise CodebookError("missing-field", what)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CodebookError("bad-field", what)
    return value


def _number(content: "dict[Any, Any]", label: int, high: int, what: str) -> int:
    value: int = _get(content, label, int, what)
    if not 0 <= value <= high:
        raise CodebookError("bad-field", what)
    return value


def _bytes(content: "dict[Any, Any]", label: int, size: "int | None", what: str) -> bytes:
    value: bytes = _get(content, label, bytes, what)
    if size is not None and len(value) != size:
        raise CodebookError("bad-field", what)
    return value


def _text(content: "dict[Any, Any]", label: int, high: int, what: str) -> None:
    if len(_get(content, label, str, what).encode()) > high:
        raise CodebookError("bad-field", what)
