"""One value as a file: the header by which half a file, a file of zeros and a file of someone
else are told from a whole one.

    "QR" | version 1 | 0 | expires u32 | length u16 | crc32 u32 of all before and the value

all big-endian, then the value.
"""

import struct
import zlib

from gateway.routes import VALUE_MAX

HEADER = struct.Struct(">2sBBIH")
HEADER_SIZE = HEADER.size + 4
FILE_MAX = HEADER_SIZE + VALUE_MAX
MAGIC, VERSION = b"QR", 1


def encode(value: bytes, expires_s: int) -> bytes:
    """The bytes of a file."""
    head = HEADER.pack(MAGIC, VERSION, 0, expires_s, len(value))
    return head + zlib.crc32(head + value).to_bytes(4, "big") + value


def decode(data: bytes) -> tuple[bytes, int] | None:
    """(value, expiry), or None: half a file, or no file of ours."""
    if len(data) <= HEADER_SIZE:
        return None
    magic, version, _, expires_s, size = HEADER.unpack_from(data)
    value = data[HEADER_SIZE:]
    crc = zlib.crc32(value, zlib.crc32(data[: HEADER.size]))
    if (magic, version, size) != (MAGIC, VERSION, len(value)) or size > VALUE_MAX:
        return None
    if crc.to_bytes(4, "big") != data[HEADER.size : HEADER_SIZE]:
        return None
    return value, expires_s


def is_hex(name: str, size: int) -> bool:
    """Exactly `size` bytes in lower-case hex: nothing else is a name of ours."""
    return len(name) == 2 * size and all(c in "0123456789abcdef" for c in name)
