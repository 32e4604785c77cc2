"""The check against MicroPython's types must find what it is for."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import types_micropython  # noqa: E402

WRONG = """\
import functools
import os
import time
import asyncio
import hashlib
from collections import Counter
from enum import Enum
def f(n: int, b: bytes, s: str) -> None:
    n.bit_length()
    b.removeprefix(b"a")
    os.fsync(1)
    os.replace("a", "b")
    os.getenv("a")
    time.monotonic()
    asyncio.Queue()
    asyncio.TaskGroup()
    hashlib.sha256(b).hexdigest()
    hashlib.sha512(b)
    n.to_bytes(2, "big", signed=True)
    s.zfill(3)
    memoryview(b).tobytes()
"""
NOT_WRONG = [2, 3, 4, 5, 8]  # lines

RIGHT = """\
import asyncio
import hashlib
import os
import time
from collections import deque, namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Point = namedtuple("Point", ("x", "y"))

async def f(n: int, b: bytes, more: "Any") -> "tuple[bytes, int, deque[int]]":
    await asyncio.sleep(0)
    event = asyncio.Event()
    await asyncio.wait_for(event.wait(), 1)
    hashlib.sha256(b).digest()
    os.rename("a", "b")
    os.stat("a")
    queue: deque[int] = deque((), 3)
    queue.append(n)
    return n.to_bytes(2, "big"), time.ticks_diff(time.ticks_ms(), 3), queue
"""


def test_finds_what_micropython_lacks(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    errors = types_micropython.errors_in(tmp_path, ["wrong.py"])
    lines = {int(error.split(":")[1]) for error in errors}
    wanted = set(range(1, WRONG.count("\n") + 1)) - set(NOT_WRONG)
    assert lines == wanted, errors


def test_lets_pass_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(RIGHT)
    assert types_micropython.errors_in(tmp_path, ["right.py"]) == []
