"""The fingerprint of SPEC.md as one matrix product.

`edge_agent.fingerprint` computes it with tables that suit a microcontroller; a gateway
checks thousands a second. The matrix is made from the same signs, and a test holds the
two against each other.
"""

from functools import lru_cache
from hashlib import sha256

import numpy as np
import numpy.typing as npt

ROWS, WIDTH = 128, 64


@lru_cache(maxsize=64)
def _signs(domain_id: bytes) -> npt.NDArray[np.float32]:
    """128 rows of +-1; the first 64 bits of SHA-256(domain id | "fp" | row | 0)."""
    rows = b"".join(
        sha256(domain_id + b"fp" + row.to_bytes(2, "big") + bytes(2)).digest()[: WIDTH // 8]
        for row in range(ROWS)
    )
    bits = np.unpackbits(np.frombuffer(rows, np.uint8)).reshape(ROWS, WIDTH)
    # Sums stay below 64 * 127: exact in float32, and its product is the fast one.
    return bits.astype(np.float32) * 2 - 1


def fingerprint(domain_id: bytes, vector: bytes) -> bytes:
    """16 bytes: bit j is 1 when the j-th projection of the 64 int8 values is >= 0."""
    values = np.frombuffer(vector, np.int8).astype(np.float32)
    return np.packbits(_signs(domain_id).dot(values) >= 0).tobytes()
