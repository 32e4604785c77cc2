"""Blocks: the frames of one commit, deflated together. Pure, but for `teach`."""

import sqlite3
import zlib
from collections.abc import Iterable
from functools import lru_cache


def pack_frames(frames: Iterable[bytes]) -> bytes:
    """One block: zlib over [length, u16][bytes] of each frame; length 0 = deleted."""
    parts = []
    for frame in frames:
        parts.append(len(frame).to_bytes(2, "big"))
        parts.append(frame)
    return zlib.compress(b"".join(parts), 1)


def unpack_frames(block: bytes) -> list[bytes]:
    """The frames of a block; b"" for those that retention deleted."""
    raw = zlib.decompress(block)
    frames = []
    at = 0
    while at < len(raw):
        end = at + 2 + (raw[at] << 8 | raw[at + 1])
        frames.append(raw[at + 2 : end])
        at = end
    return frames


@lru_cache(maxsize=4)
def _opened(block: bytes) -> list[bytes]:
    return unpack_frames(block)


def teach(db: sqlite3.Connection) -> sqlite3.Connection:
    """Give any connection the SQL function that the view `frames` needs."""
    db.create_function(
        "unpack_frame", 2, lambda block, step: _opened(block)[step], deterministic=True
    )
    return db
