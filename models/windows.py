"""Windows of the watch data, their features in numpy, and physically meant augmentation.

`stats8` computes what `edge_agent/features.py` computes, vectorised; a test compares the
two bit by bit.

Augmentation makes other plausible recordings out of the ones at hand:

- mirror: the same exercise with the other arm. The watch then lies mirrored on its x axis:
  ax changes sign, and of the rotation, a pseudo-vector, wy and wz do;
- rotation: the watch sits a little turned on the wrist;
- speed: the exercise done faster or slower; rotation rates scale with it;
- vigour: all movement larger or smaller around the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.watch_data import Recording

WINDOW = 128
HOP = 64

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MIRROR = np.array([-1, 1, 1, 1, -1, -1])


def cut(recordings: Sequence[Recording], hop: int = HOP) -> tuple[Ints, Ints, Ints]:
    """(windows (n, 128, 6), labels, persons)."""
    windows, labels, persons = [], [], []
    for r in recordings:
        for start in range(0, len(r.samples) - WINDOW + 1, hop):
            windows.append(r.samples[start : start + WINDOW])
            labels.append(r.label)
            persons.append(r.person)
    return np.stack(windows).astype(np.int64), np.array(labels), np.array(persons)


def stats8(windows: Ints) -> Ints:
    """(n, 128, 6) -> (n, 48), before offset, factor and shift."""
    windows = windows.astype(np.int64)  # differences of int16 do not fit int16
    length = windows.shape[1]
    mean = windows.sum(1) // length
    deviation = windows - mean[:, None]
    variance = (((deviation * deviation) >> 4).sum(1) << 4) // length
    root = np.floor(np.sqrt(variance.astype(np.float64))).astype(np.int64)
    travel = np.abs(np.diff(windows, axis=1)).sum(1) // (length - 1)
    quarters = windows.reshape(len(windows), 4, length // 4, -1).sum(2) // (length // 4)
    parts = [mean, root, windows.min(1), windows.max(1), travel]
    parts += [quarters[:, i] - mean for i in range(3)]
    return np.concatenate(parts, 1)


def to_int8(features: Ints, offset: Ints, mul: Ints, shift: int) -> npt.NDArray[np.int8]:
    """The last step of features.py."""
    scaled = ((features.astype(np.int64) - offset) * mul + (1 << (shift - 1))) >> shift
    return np.clip(scaled, -128, 127).astype(np.int8)


def augmented(
    recordings: Sequence[Recording],
    rng: np.random.Generator,
    per_window: float,
    rotation: float = 0.1,
    speed: float = 0.2,
    vigour: float = 0.1,
) -> tuple[Ints, Ints]:
    """About `per_window` random variants for every ordinary window: (windows, labels).

    rotation: standard deviation in rad per axis.  speed: the logarithm is uniform within
    +-speed.  vigour: standard deviation of the logarithm. Half of the variants are mirrored.
    """
    windows, labels = [], []
    for r in recordings:
        for sign in (np.ones(6), MIRROR):
            x = r.samples * sign
            n = max(1, round(len(x) / HOP * per_window / 2))
            factor = np.exp(rng.uniform(-speed, speed, n))
            span = np.minimum((WINDOW - 1) * factor, len(x) - 2)
            start = rng.random(n) * np.maximum(len(x) - 2 - span, 0)
            at = start[:, None] + np.linspace(0, 1, WINDOW) * span[:, None]
            low = at.astype(np.int64)
            weight = (at - low)[:, :, None]
            out = x[low] * (1 - weight) + x[low + 1] * weight
            out[:, :, 3:] *= factor[:, None, None]
            turn = rotations(rng.normal(0, rotation, (n, 3))).transpose(0, 2, 1)
            out[:, :, :3] = out[:, :, :3] @ turn
            out[:, :, 3:] = out[:, :, 3:] @ turn
            gain = np.exp(rng.normal(0, vigour, (n, 1, 1)))
            centre = out.mean(1, keepdims=True)
            centre[:, :, 3:] = 0
            out = centre + (out - centre) * gain
            windows.append(np.clip(np.rint(out), -32768, 32767).astype(np.int64))
            labels.append(np.full(n, r.label))
    return np.concatenate(windows), np.concatenate(labels)


def rotations(vectors: Floats) -> Floats:
    """(n, 3) rotation vectors -> (n, 3, 3) matrices (Rodrigues)."""
    angle = np.linalg.norm(vectors, axis=1) + 1e-12
    x, y, z = (vectors / angle[:, None]).T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).reshape(-1, 3, 3)
    sine = np.sin(angle)[:, None, None]
    cosine = np.cos(angle)[:, None, None]
    return np.eye(3) + sine * cross + (1 - cosine) * (cross @ cross)
