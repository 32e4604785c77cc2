"""Fixed +1/-1 projections of a vector, and the 128-bit fingerprint made of their signs.

The signs come from SHA-256, so every party that knows the domain id has the same matrix
and nobody ships one:

    digest(row, block) = SHA-256(domain id | purpose | row, u16 | block, u16)
    sign of (row, column) = bit column % 256 of digest(row, column // 256),
                            most significant bit first; 1 is +1 and 0 is -1

Purpose "proj" brings an embedding of any width to 64 numbers, "fp" makes fingerprints:
bit j (most significant bit of the first byte is bit 0) is 1 when row j gives >= 0.

Two ways to sum, same numbers. The quick one keeps each matrix *column* as a big integer
with one lane per row, so one multiplication adds a component to every row at once: 64
multiplications instead of 8,192 additions, at 17 KB of RAM for 128 rows. The lean one
keeps 1 KB of sign bits and looks up sums of four components at a time; it is meant for
boards, where a fingerprint is made once per outcome.
"""

from array import array

from edge_agent.interfaces import Crypto

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Sequence

FINGERPRINT_BYTES = 16
VECTOR_BYTES = 64
MAX_WIDTH = 4096
PURPOSE_PROJECT = b"proj"
PURPOSE_FINGERPRINT = b"fp"


class Projection:
    """`rows` x `width` signs. Inputs are integers within -256..255.

    lean: keep sign bits only (rows * width / 8 bytes) and sum more slowly.
    """

    def __init__(
        self,
        crypto: Crypto,
        domain_id: bytes,
        purpose: bytes,
        rows: int,
        width: int,
        lean: bool = False,
    ) -> None:
        if not 1 <= width <= MAX_WIDTH:
            raise ValueError("width %d, allowed 1..%d" % (width, MAX_WIDTH))
        self.rows = rows
        self.width = width
        self.lean = lean
        # A lane holds a sum and its sign: |sum| <= width * 256 < 2 ** (lane - 1).
        self._lane = 16 if width < 128 else 24
        self._stride = (width + 7) // 8
        signs = bytearray()
        for row in range(rows):
            seed = domain_id + purpose + row.to_bytes(2, "big")
            left = self._stride
            for block in range((width + 255) // 256):
                digest = crypto.sha256(seed + block.to_bytes(2, "big"))
                signs.extend(digest[: min(left, 32)])
                left -= 32
        self._signs = bytes(signs)
        self._table: array[int] | None = None
        self._columns: list[int] = []
        self._ones = 0
        self._fold: list[tuple[int, int]] = []

    def apply(self, values: "Sequence[int]") -> "list[int]":
        """The `rows` sums for `width` values."""
        if self.lean:
            table = self._fill(values)
            return [self._row(table, row) for row in range(self.rows)]
        size = self._lane // 8
        half = 1 << (self._lane - 1)
        raw = self._sum(values).to_bytes(size * self.rows, "big")
        return [
            int.from_bytes(raw[i : i + size], "big") - half
            for i in range(0, size * self.rows, size)
        ]

    def signs(self, values: "Sequence[int]") -> bytes:
        """One bit per row, 1 when its sum is >= 0, row 0 first. `rows` must divide by 8."""
        if self.lean:
            table = self._fill(values)
            out = bytearray(self.rows // 8)
            for row in range(self.rows):
                if self._row(table, row) >= 0:
                    out[row >> 3] |= 128 >> (row & 7)
            return bytes(out)
        bits = self._sum(values)
        bits = (bits >> (self._lane - 1)) & self._ones
        for shift, mask in self._fold:
            bits = (bits | bits >> shift) & mask
        return bits.to_bytes(self.rows // 8, "big")

    def _sum(self, values: "Sequence[int]") -> int:
        """Every row's sum in its lane, offset by half a lane; row 0 is the highest lane."""
        if not self._columns:
            self._spread()
        if len(values) != self.width:
            raise ValueError("%d values, %d wanted" % (len(values), self.width))
        plus = 0
        total = 0
        for i, column in enumerate(self._columns):
            value = values[i]
            total += value
            plus += column * value
        # Sum over +1 minus sum over -1 equals twice the sum over +1 minus all.
        return plus + plus + self._ones * ((1 << (self._lane - 1)) - total)

    def _spread(self) -> None:
        lane = self._lane
        columns = [0] * self.width
        for row in range(self.rows):
            bit = 1 << (lane * (self.rows - 1 - row))
            self._ones |= bit
            start = row * self._stride
            for column in range(self.width):
                if self._signs[start + (column >> 3)] >> (7 - (column & 7)) & 1:
                    columns[column] |= bit
        # Masks that bring one bit per lane together in log2(rows) steps.
        group = 1
        while group < self.rows:
            mask = 0
            for start in range(0, self.rows, group * 2):
                mask |= ((1 << (group * 2)) - 1) << (lane * start)
            self._fold.append(((lane - 1) * group, mask))
            group *= 2
        self._columns = columns

    def _fill(self, values: "Sequence[int]") -> "array[int]":
        """For every four components all sixteen sums they can give. One array, kept: many
        small objects would leave the heap in pieces."""
        if len(values) != self.width:
            raise ValueError("%d values, %d wanted" % (len(values), self.width))
        if self._table is None:
            self._table = array("h", bytes(64 * self._stride))
        table = self._table
        at = 0
        for start in range(0, 8 * self._stride, 4):
            for bits in range(16):
                total = 0
                mask = 8
                for i in range(start, min(start + 4, self.width)):
                    total += values[i] if bits & mask else -values[i]
                    mask >>= 1
                table[at] = total
                at += 1
        return table

    def _row(self, table: "array[int]", row: int) -> int:
        signs = self._signs
        total = group = 0
        for at in range(row * self._stride, (row + 1) * self._stride):
            byte = signs[at]
            total += table[group | byte >> 4] + table[group + 16 | byte & 15]
            group += 32
        return total


def signed(data: bytes) -> "list[int]":
    """The int8 values of some bytes."""
    return [byte - 256 if byte > 127 else byte for byte in data]


def fingerprint(projection: Projection, vector: bytes) -> bytes:
    """16 bytes for a 64-byte vector; `projection` is the domain's "fp" of 128 x 64."""
    if len(vector) != VECTOR_BYTES:
        raise ValueError("vector of %d bytes, 64 wanted" % len(vector))
    return projection.signs(signed(vector))
