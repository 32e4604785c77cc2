"""One value as a file: the header by which half a file, a file of zeros and a file of someone
else are told from a whole one.

    "QR" | version 1 | 0 | expires u32 | length u16 | crc32 u32 of all before and the value

all big-endian, then the value.
"""

import os
import stat
import struct
import zlib
from pathlib import Path

from gateway.routes import TOKEN_SIZE, VALUE_MAX

HEADER = struct.Struct(">2sBBIH")
HEADER_SIZE = HEADER.size + 4
FILE_MAX = HEADER_SIZE + VALUE_MAX
MAGIC, VERSION = b"QR", 1
ENTRIES = 1024  # files of one owner under one key looked at
NOFOLLOW = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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


def list_values(directory: "Path | str") -> list[str]:
    """Names of files of ours, at most ENTRIES; none when the directory is not there."""
    names = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if is_hex(entry.name, TOKEN_SIZE):
                    names.append(entry.name)
                    if len(names) >= ENTRIES:
                        break
    except (FileNotFoundError, NotADirectoryError):
        pass
    return names


def read_file(path: "Path | str") -> bytes | None:
    """At most one byte too many. b"" for what is no regular file, None for what is gone."""
    try:
        fd = os.open(path, NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        return os.read(fd, FILE_MAX + 1)
    except OSError:
        return b""
    finally:
        os.close(fd)
