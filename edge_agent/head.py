"""A head: the last layer of a classifier, refitted by a gateway, in integers.

Theory of operation. A head has one row for each label. From a vector x (64 int8, the one in
an outcome) row i gives

    acc   = bias + sum of weights[j] * x[j]
    logit = (acc * multiplier + (2^shift div 2)) >> shift       in 1/256 nat

and the logits give scores: 0..255, about 255 in all, by a softmax over integers. The same
rows and vector give the same scores on every interpreter, and gateway and device run this very
module. `>>` rounds towards minus infinity.

    e(d) = 2^15 exp(-d / 256), d being how far a logit is below the highest, is computed as
           2^-q times a cubic for 2^-f: at most 4 of 32,768 off
    score = (255 e + sum div 2) div sum

A row travels alone, in a box of its own: `encode_row`, `decode_row`. SPEC.md, section 6.
"""

from array import array
from collections import namedtuple

from edge_agent.cbor import decode, encode
from edge_agent.errors import CborError, FrameError

WIDTH = 64  # numbers in a vector, weights in a row
ROWS_MAX = 255
SHIFT_MAX = 62
MULTIPLIER_MAX = (1 << 31) - 1
_BIAS = 1 << 31

# version: of the head, 0..65535.  model_id: 8 bytes, b"" for any model.  index: the label,
# 0..count - 1.  count: rows of the head.  weights: 64 int8 as bytes.  bias: int32.
# multiplier: 0..2**31 - 1.  shift: 0..62.
Row = namedtuple(
    "Row",
    ("version", "model_id", "index", "count", "weights", "bias", "multiplier", "shift"),
)


def encode_row(row: Row) -> bytes:
    """The body of a box of type 1. FrameError("bad-field") when a value is out of range."""
    body = encode(list(row))
    decode_row(body)  # what a reader would refuse is not sent
    return body


def decode_row(body: bytes) -> Row:
    """The row in a body. FrameError("not-cbor" or "bad-field")."""
    try:
        values = decode(body, 1, 8)
    except CborError as error:
        raise FrameError("not-cbor", str(error))
    if type(values) is not list or len(values) != 8:
        raise FrameError("bad-field", "a row is an array of 8")
    row = Row(*values)
    for value, low, high, name in (
        (row.version, 0, 0xFFFF, "version"),
        (row.count, 1, ROWS_MAX, "count"),
        (row.bias, -_BIAS, _BIAS - 1, "bias"),
        (row.multiplier, 0, MULTIPLIER_MAX, "multiplier"),
        (row.shift, 0, SHIFT_MAX, "shift"),
    ):
        if type(value) is not int or not low <= value <= high:
            raise FrameError("bad-field", name)
    if type(row.index) is not int or not 0 <= row.index < row.count:
        raise FrameError("bad-field", "index")
    if type(row.model_id) is not bytes or len(row.model_id) not in (0, 8):
        raise FrameError("bad-field", "model_id")
    if type(row.weights) is not bytes or len(row.weights) != WIDTH:
        raise FrameError("bad-field", "weights")
    return row


class Head:
    """All rows of one version. `scores(vector)` is what it says of a vector.

    rows: one Row for each label 0..n - 1, in any order; all of them say the same version, model
    id and count. ValueError when they are not such a set.
    """

    def __init__(self, version: int, model_id: bytes, rows: "list[Row]") -> None:
        self.version = version
        self.model_id = model_id
        self.rows = sorted(rows, key=lambda row: row.index)
        for i, row in enumerate(self.rows):
            if row[:4] != (version, model_id, i, len(rows)):
                raise ValueError("row %d is not one of head %d" % (i, version))
        if not rows:
            raise ValueError("a head without rows")

    def logits(self, vector: bytes) -> "list[int]":
        """One for each label, in 1/256 nat. ValueError when the vector has not 64 numbers."""
        if len(vector) != WIDTH:
            raise ValueError("a vector has 64 numbers")
        x = array("b", vector)
        out = []
        for row in self.rows:
            w = array("b", row.weights)
            acc = row.bias
            for j in range(WIDTH):
                acc += w[j] * x[j]
            out.append((acc * row.multiplier + ((1 << row.shift) >> 1)) >> row.shift)
        return out

    def scores(self, vector: bytes) -> bytes:
        """0..255 for each label, about 255 in all."""
        return softmax(self.logits(vector))

    def fits(self, model_id: "bytes | None", labels: int) -> bool:
        """Whether it may speak for this model in a domain with so many labels."""
        return len(self.rows) <= labels and self.model_id in (b"", model_id)


def softmax(logits: "list[int]") -> bytes:
    """Scores of logits in 1/256 nat: a byte for each."""
    top = max(logits)
    parts = []
    for logit in logits:
        # 94548 / 65536 is 1 / ln 2: from nats to powers of two, still in 1/256.
        d = ((top - logit) * 94548 + 32768) >> 16
        parts.append(0 if d >= 4096 else _half(d & 255) >> (d >> 8))
    total = sum(parts)
    return bytes([(255 * part + (total >> 1)) // total for part in parts])


def _half(f: int) -> int:
    """2^15 * 2^-(f / 256) for f in 0..255."""
    # Horner in Q15; the coefficients sum up to -1/2, so that the pieces join.
    y = 7575 + ((-1296 * f) >> 8)
    y = -22663 + ((y * f) >> 8)
    return 32768 + ((y * f) >> 8)
