"""The domain file: what makes outcomes of different sites comparable.

It fixes the vector space (which encoder, how its output becomes 64 int8 numbers) and
names labels, tags, actions and results, which travel as indexes into these lists. The
id covers name, owner and vector space only: a newer version may append names, and every
outcome made before stays valid. Names are never removed or reordered; `extends` checks.

The file is a COSE_Sign1 (Ed25519) around a CBOR map. It carries its owner's public key,
so a good signature shows that the owner made it; whether that owner is the one wanted is
decided by comparing `id` (or passing `owner`). Boards have no Ed25519: they get the file
from their own gateway and load it with verify=False.

    id = first 8 bytes of SHA-256(CBOR(["qis domain", name, owner, vector space]))
"""

from collections import namedtuple

from edge_agent import cbor, cose
from edge_agent.errors import CborError, CoseError, DomainError
from edge_agent.fingerprint import (
    MAX_WIDTH,
    PURPOSE_FINGERPRINT,
    PURPOSE_PROJECT,
    VECTOR_BYTES,
    Projection,
    signed,
)
from edge_agent.fingerprint import fingerprint as _fingerprint
from edge_agent.interfaces import Crypto

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Sequence

FILE_MAX = 16384
NAME_MAX = 64  # bytes of UTF-8, for every name
NAMES_MAX = 1024  # entries in each of the four lists
_ITEMS_MAX = 8192
_AAD = b"qis domain"
_CONTENT_TYPE = 65010

UNSURE = "unsure"

# An encoder of this name: the embedding is the model's input itself, so that sites may run
# any model they like.
PROFILE = "features"

# How alike two outcomes of the domain are (the gateway's affair).
SIMILARITIES = ("cosine", "dot", "l2", "hamming")

# kind: text, the extractor.  axes, window, hop: of the sensor window, in samples.
# offset, mul: one pair per feature, feature = (raw - offset) * mul >> shift, as int8.
Features = namedtuple("Features", ("kind", "axes", "window", "hop", "offset", "mul", "shift"))

# dim: numbers in the embedding.  encoder: SHA-256 of the encoder model (32 bytes) or the
# name of a feature profile (text).  multiplier, shift: see Domain.vector.
VectorSpace = namedtuple("VectorSpace", ("dim", "encoder", "multiplier", "shift", "features"))


class Domain:
    """A loaded domain. Lists are tuples of text; an index into them is what travels."""

    def __init__(
        self,
        crypto: Crypto,
        name: str,
        owner: bytes,
        version: int,
        space: VectorSpace,
        labels: "Sequence[str]",
        tags: "Sequence[str]",
        actions: "Sequence[str]",
        results: "Sequence[str]",
        similarity: str = "cosine",
        lean: bool = False,
    ) -> None:
        self.name = name
        self.owner = owner
        self.version = version
        self.space = space
        self.labels = tuple(labels)
        self.tags = tuple(tags)
        self.actions = tuple(actions)
        self.results = tuple(results)
        self.similarity = similarity
        body = cbor.encode(["qis domain", name, owner, _space_map(space)])
        self.id: bytes = crypto.sha256(body)[:8]
        self.features: Features = space.features
        self._crypto = crypto
        self._lean = lean
        self._fp: Projection | None = None
        self._proj: Projection | None = None

    @staticmethod
    def load(
        data: bytes,
        crypto: Crypto,
        verify: bool = True,
        owner: "bytes | None" = None,
        lean: bool = False,
    ) -> "Domain":
        """Read a domain file, at most 16 KiB.

        verify: check the signature.  owner: refuse any other owner.  lean: save RAM
        (see Projection).  DomainError reasons: "too-long", "not-cbor", "not-cose",
        "bad-signature", "wrong-owner", "missing-field", "bad-field".
        """
        if len(data) > FILE_MAX:
            raise DomainError("too-long", "%d bytes" % len(data))
        try:
            message = cose.parse(data, _ITEMS_MAX)
            content = cbor.decode(message.payload, 6, _ITEMS_MAX)
        except CborError as error:
            raise DomainError("not-cbor", str(error))
        except CoseError as error:
            raise DomainError("not-cose", str(error))
        if not isinstance(content, dict):
            raise DomainError("bad-field", "content is no map")
        key = content.get(2)
        if not isinstance(key, bytes) or len(key) != 32:
            raise DomainError("bad-field", "owner")
        if owner is not None and owner != key:
            raise DomainError("wrong-owner", key.hex())
        if verify:
            try:
                cose.verify_sign1(crypto, key, message, _AAD)
            except CoseError as error:
                raise DomainError("bad-signature", str(error))
        space = _space(_get(content, 4, dict, "vector space"))
        similarity = content.get(9, "cosine")
        if similarity not in SIMILARITIES:
            raise DomainError("bad-field", "similarity")
        return Domain(
            crypto,
            _name(_get(content, 1, str, "name"), "name"),
            key,
            _int(content, 3, 0, 0xFFFFFFFF, "version"),
            space,
            _names(content, 5, "labels"),
            _names(content, 6, "tags"),
            _names(content, 7, "actions"),
            _names(content, 8, "results"),
            similarity,
            lean,
        )

    def vector(self, embedding: bytes, zero_point: int) -> bytes:
        """64 int8 values of an int8 embedding, `space.dim` wide.

        v = clamp((x * multiplier + 2 ** (shift - 1)) >> shift, -127, 127), where x is
        embedding - zero point, projected to 64 numbers first when the width differs.
        """
        if len(embedding) != self.space.dim:
            raise DomainError(
                "bad-field", "embedding of %d, domain has %d" % (len(embedding), self.space.dim)
            )
        values = [value - zero_point for value in signed(embedding)]
        if len(values) != VECTOR_BYTES:
            if self._proj is None:
                self._proj = Projection(
                    self._crypto, self.id, PURPOSE_PROJECT, VECTOR_BYTES, len(values), self._lean
                )
            values = self._proj.apply(values)
        multiplier = self.space.multiplier
        shift = self.space.shift
        half = (1 << shift) >> 1
        out = bytearray(VECTOR_BYTES)
        for i, value in enumerate(values):
            scaled = (value * multiplier + half) >> shift
            if scaled > 127:
                scaled = 127
            elif scaled < -127:
                scaled = -127
            out[i] = scaled & 255
        return bytes(out)

    def fingerprint(self, vector: bytes) -> bytes:
        """16 bytes: signs of 128 projections of a 64-byte vector."""
        if self._fp is None:
            self._fp = Projection(
                self._crypto, self.id, PURPOSE_FINGERPRINT, 128, VECTOR_BYTES, self._lean
            )
        return _fingerprint(self._fp, vector)

    def extends(self, older: "Domain") -> bool:
        """True when this is `older` or a later version that only appends names."""
        if self.id != older.id or self.version < older.version:
            return False
        for mine, theirs in (
            (self.labels, older.labels),
            (self.tags, older.tags),
            (self.actions, older.actions),
            (self.results, older.results),
        ):
            if mine[: len(theirs)] != theirs:
                return False
        return True

    def __repr__(self) -> str:
        return "Domain(%s, %s, version %d)" % (self.name, self.id.hex(), self.version)


def make_domain(
    crypto: Crypto,
    private_key: bytes,
    owner: bytes,
    name: str,
    version: int,
    space: VectorSpace,
    labels: "Sequence[str]",
    tags: "Sequence[str]" = (),
    actions: "Sequence[str]" = (),
    results: "Sequence[str]" = (),
    similarity: str = "cosine",
) -> bytes:
    """The signed file. Hosts only. DomainError when a reader would refuse the content."""
    content = {
        1: name,
        2: owner,
        3: version,
        4: _space_map(space),
        5: list(labels),
        6: list(tags),
        7: list(actions),
        8: list(results),
        9: similarity,
    }
    header = {cose.HDR_ALG: cose.ALG_EDDSA, cose.HDR_TYP: _CONTENT_TYPE}
    data = cose.sign1(crypto, private_key, header, cbor.encode(content), _AAD)
    Domain.load(data, crypto, True, owner)
    return data


def _space_map(space: VectorSpace) -> "dict[int, Any]":
    features = space.features
    return {
        1: space.dim,
        2: space.encoder,
        3: space.multiplier,
        4: space.shift,
        5: {
            1: features.kind,
            2: features.axes,
            3: features.window,
            4: features.hop,
            5: list(features.offset),
            6: list(features.mul),
            7: features.shift,
        },
    }


def _space(content: "dict[Any, Any]") -> VectorSpace:
    encoder = content.get(2)
    if isinstance(encoder, bytes):
        if len(encoder) != 32:
            raise DomainError("bad-field", "encoder")
    else:
        _name(encoder, "encoder")
    inner = _get(content, 5, dict, "features")
    offset = _ints(inner, 5, "features.offset")
    mul = _ints(inner, 6, "features.mul")
    if len(offset) != len(mul):
        raise DomainError("bad-field", "features.offset and features.mul differ in length")
    features = Features(
        _name(_get(inner, 1, str, "features.kind"), "features.kind"),
        _int(inner, 2, 1, 64, "features.axes"),
        _int(inner, 3, 1, 65535, "features.window"),
        _int(inner, 4, 1, 65535, "features.hop"),
        offset,
        mul,
        _int(inner, 7, 0, 62, "features.shift"),
    )
    return VectorSpace(
        _int(content, 1, 1, MAX_WIDTH, "dim"),
        encoder,
        _int(content, 3, 1, 0xFFFFFF, "multiplier"),
        _int(content, 4, 0, 40, "shift"),
        features,
    )


def _get(content: "dict[Any, Any]", label: int, kind: type, what: str) -> "Any":
    value = content.get(label)
    if value is None:
        raise DomainError("missing-field", what)
    if not isinstance(value, kind):
        raise DomainError("bad-field", what)
    return value


def _int(content: "dict[Any, Any]", label: int, low: int, high: int, what: str) -> int:
    value = _get(content, label, int, what)
    if value is True or value is False or not low <= value <= high:
        raise DomainError("bad-field", what)
    return int(value)


def _ints(content: "dict[Any, Any]", label: int, what: str) -> "tuple[int, ...]":
    values = _get(content, label, list, what)
    for value in values:
        if not isinstance(value, int) or value is True or value is False:
            raise DomainError("bad-field", what)
    return tuple(values)


def _name(value: "Any", what: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value.encode()) <= NAME_MAX:
        raise DomainError("bad-field", what)
    return value


def _names(content: "dict[Any, Any]", label: int, what: str) -> "tuple[str, ...]":
    values = _get(content, label, list, what)
    if len(values) > NAMES_MAX:
        raise DomainError("bad-field", what)
    seen = set()
    for value in values:
        _name(value, what)
        if value in seen:
            raise DomainError("bad-field", "%s: %s twice" % (what, value))
        seen.add(value)
    return tuple(values)
