"""The interpreters and tools of MicroPython that the tests run."""

import platform
import sys
from pathlib import Path

import pytest

# From the package index, beside this interpreter; and what `make micropython` built.
MICROPYTHON = Path(sys.executable).with_name("micropython")
BUILT = Path(__file__).resolve().parents[2] / ".cache" / "micropython"
MICROPYTHON32 = BUILT / "micropython32"


def need(path):
    """`path`. `make test` has put it there before: its absence is a failure.

    On other machines than x86-64 there is no such package and no 32-bit build.
    """
    if not path.exists():
        if platform.machine() == "x86_64":
            pytest.fail(f"{path} is missing; `make core32` builds it")
        pytest.skip("MicroPython comes for x86-64 only")
    return path
