"""Embeddings for recall.py: made up, of digits, of the watch encoder. Seeded, nothing stored.

Each world has vectors to train a codebook on, vectors to announce with the label that their
device would have concluded, and questions; the three come from different people, images or
draws. Where a world has features, they are what a decoder of sketches would want to know.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models import mlp, watch_data
from models.make_codebook import COUNT, PEOPLE, SEED, encode, outcomes
from models.train import REPLAY_PEOPLE
from models.windows import cut, stats8, to_int8

Int8 = npt.NDArray[np.int8]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class World(NamedTuple):
    name: str
    training: Int8
    vectors: Int8
    labels: Ints
    questions: Int8
    asked: Ints  # the label of each question


def synthetic(count: int, questions: int, heavy: bool = False) -> World:
    """200 clusters in 64 dimensions; sizes fall with rank ** -0.5, or -1 when heavy.

    The tenth nearest is at cosine 0.7, 50 dimensions hold 90 % of the variance. Eight labels,
    25 clusters each. Heavy: one cluster in six draws is the same, a ball without structure.
    """
    rng = np.random.default_rng(0)
    centres = _unit(rng.normal(size=(200, 64)))
    share = np.arange(1, 201.0) ** (-1.0 if heavy else -0.5)

    def draw(n: int) -> tuple[Int8, Ints]:
        cluster = rng.choice(200, n, p=share / share.sum())
        rows = _unit(centres[cluster] + 0.85 / 8 * rng.normal(size=(n, 64)))
        return np.clip(np.rint(rows * 300), -127, 127).astype(np.int8), cluster % 8

    training, _ = draw(20_000)
    vectors, labels = draw(count)
    asked, own = draw(questions)
    return World(
        "synthetic, heavy" if heavy else "synthetic", training, vectors, labels, asked, own
    )


def digits(count: int, questions: int) -> World:
    """scikit-learn's 8 x 8 digits, moved, turned and noised, through a net of 64-64-64-10.

    Net and codebook see the first half of the images only.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images, truth = data.data.astype(np.float32) / 16, data.target
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(len(images))
    seen, unseen = shuffled[:900], shuffled[900:]

    def varied(which: Ints, n: int) -> tuple[npt.NDArray[np.float32], Ints]:
        i = rng.choice(which, n)
        moved = _moved(images[i].reshape(-1, 8, 8), rng)
        noisy = moved.reshape(n, 64) + rng.normal(0, 0.05, (n, 64))
        return np.clip(noisy, 0, 1.2).astype(np.float32), truth[i]

    x, y = varied(seen, 12_000)
    recipe = mlp.Recipe(epochs=12, drop=0.1)
    net = mlp.train(x, np.eye(10, dtype=np.float32)[y], (64, 64, 64, 10), recipe, 0)

    def embed(which: Ints, n: int) -> tuple[npt.NDArray[np.float32], Ints]:
        layers = mlp.forward(net, varied(which, n)[0])
        return layers[-2], layers[-1].argmax(1)

    training, _ = embed(seen, 20_000)
    scale = 127 / np.quantile(training, 0.9995)
    rows, labels = embed(unseen, count + questions)

    def quantised(values: npt.NDArray[np.float32]) -> Int8:
        return np.clip(np.rint(values * scale), -127, 127).astype(np.int8)

    vectors = quantised(rows)
    return World(
        "digits",
        quantised(training),
        vectors[:count],
        labels[:count],
        vectors[count:],
        labels[count:],
    )


def watch(count: int, questions: int) -> World:
    """The shipped encoder on varied windows of people 4-10; training on those of 1-3."""
    recordings = watch_data.load()
    known = [r for r in recordings if r.person in PEOPLE]
    others = [r for r in recordings if r.person in REPLAY_PEOPLE]
    training, _ = outcomes(known, COUNT, SEED)
    # As little varied as for training the encoder's teachers.
    vectors, labels = outcomes(others, count + questions, 0, (0.1, 0.2, 0.1))
    return World(
        "watch", training, vectors[:count], labels[:count], vectors[count:], labels[count:]
    )


def watch_features() -> "tuple[Int8, Int8, Int8, Int8]":
    """(vectors, features) of people 1-3, and of 4-10, of the windows as they were recorded."""
    import json

    from models.make_codebook import HERE

    recordings = watch_data.load()
    p = json.loads((HERE / "watch_features.json").read_text())
    out: list[Int8] = []
    for people, hop in ((PEOPLE, 16), (REPLAY_PEOPLE, 64)):
        windows, _, _ = cut([r for r in recordings if r.person in people], hop)
        features = to_int8(stats8(windows), np.array(p["offset"]), np.array(p["mul"]), p["shift"])
        out += [encode(features)[0], features]
    return out[0], out[1], out[2], out[3]


def _unit(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def _moved(images: npt.NDArray[np.float32], rng: np.random.Generator) -> Floats:
    """(n, 8, 8) turned, scaled and shifted a little, by linear interpolation."""
    n = len(images)
    angle, scale = rng.normal(0, 0.12, n), np.exp(rng.normal(0, 0.08, n))
    shift = rng.uniform(-0.8, 0.8, (n, 2))
    cosine, sine = (np.cos(angle) / scale)[:, None, None], (np.sin(angle) / scale)[:, None, None]
    y, x = np.mgrid[0:8, 0:8] - 3.5
    down = cosine * y - sine * x + 3.5 + shift[:, 0, None, None]
    right = sine * y + cosine * x + 3.5 + shift[:, 1, None, None]
    top, left = np.floor(down).astype(int), np.floor(right).astype(int)
    padded = np.pad(images, ((0, 0), (2, 3), (2, 3)))
    each = np.arange(n)[:, None, None]

    def pixel(dy: int, dx: int) -> Floats:
        return padded[each, np.clip(top + dy + 2, 0, 11), np.clip(left + dx + 2, 0, 11)]

    fy, fx = down - top, right - left
    return (
        pixel(0, 0) * (1 - fy) * (1 - fx)
        + pixel(1, 0) * fy * (1 - fx)
        + pixel(0, 1) * (1 - fy) * fx
        + pixel(1, 1) * fy * fx
    )
