"""A directory as a ROMFS image: files that MicroPython (1.25 and newer) uses where they lie.

Modules from ROMFS leave their bytecode and texts in flash, and a file opened there can be
read as a buffer without a copy. The image goes into a partition of its own:
`mpremote romfs deploy FILE`, on firmware that has one.

Format (extmod/vfs_rom.c of MicroPython): records of kind, length and payload; kind and
length are numbers of seven bits a byte, most significant first. A directory's payload is
its name and its entries' records, a file's its name and a record with its data. The whole
is one record whose kind reads as the magic bytes d2 cd 31.
"""

from pathlib import Path

_MAGIC, _DATA, _DIRECTORY, _FILE = b"\xd2\xcd\x31", 2, 4, 5


def image(directory: Path) -> bytes:
    """The directory with all that is below it, entries in order of their names."""
    payload = _entries(directory)
    length = _number(len(payload))
    if (len(_MAGIC) + len(length) + len(payload)) % 2:
        length = b"\x80" + length  # the file system wants an even size
    return _MAGIC + length + payload


def _entries(directory: Path) -> bytes:
    out = b""
    for path in sorted(directory.iterdir()):
        name = path.name.encode("ascii")
        name = _number(len(name)) + name
        if path.is_dir():
            out += _record(_DIRECTORY, name + _entries(path))
        else:
            out += _record(_FILE, name + _record(_DATA, path.read_bytes()))
    return out


def _record(kind: int, payload: bytes) -> bytes:
    return _number(kind) + _number(len(payload)) + payload


def _number(n: int) -> bytes:
    out = bytes([n & 127])
    while n > 127:
        n >>= 7
        out = bytes([n & 127 | 128]) + out
    return out
