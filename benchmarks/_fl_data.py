"""Worlds for federated.py: sites with data of their own, and an encoder they have in common.

Watch: the encoder sees people 1-3, varied; people 4-10 are seven sites. A site learns from its
person's left arm and is tested on the right, never the other way round. The last site is tiny:
40 windows. What a device makes of a window (vector, scores) comes from LiteRT's int8 reference
kernels. Each seed has an encoder of its own.

Development worlds, for choosing settings, touch no right arm: sites learn from the first 60 %
of the left arm's recordings and are tested on the rest, mirrored and with the watch worn in another
way, which is what the other arm would look like. The encoders' seeds are others, too.

Scenarios: `iid` all classes everywhere; `skew4`, `skew2` each site has 4 or 2 of the 7;
`novel` two classes that the encoder has never seen and only sites 0, 2 and 4 have; `rare` one
such class, 40 windows of it at site 0 and 8 each at sites 2 and 4.

Digits: scikit-learn's 8 x 8 digits; an encoder from 150 of them; seven sites with a mixture of
classes drawn from a Dirichlet distribution, each with a camera turned in its own way; tested on
images that nobody learns from, turned like the site's, all classes.

Villages: watch data again, 2 to 100 sites. Each is one of people 4-10 with a watch of its own
(turned on the wrist) and a vigour of its own, 40 windows: made up, but from real recordings.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models import mlp, watch_data
from models.make_domain import MULTIPLIER, SHIFT
from models.reference import reference, run_int8
from models.tflite_writer import Quantiser, quantiser, write_mlp
from models.train import scaling
from models.watch_data import Recording
from models.windows import HOP, MIRROR, augmented, cut, rotations, stats8

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "federated"
LEARNT, SITES = (1, 2, 3), tuple(range(4, 11))
TINY, TINY_WINDOWS = 6, 40
KNOWING = (0, 2, 4)  # sites that have the novel classes
SCENARIOS = ("iid", "skew4", "novel", "skew2")
RARE_AT = {0: 40, 2: 8, 4: 8}  # windows of the rare class by site
DEVELOPMENT = 1000  # seeds from here on are for choosing settings

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Int8 = npt.NDArray[np.int8]


class World(NamedTuple):
    """One seed's sites. Rows are windows (or images): of all sites, learnt from and tested on."""

    name: str
    seed: int
    net: mlp.Net
    model: bytes  # the same net as .tflite, int8
    inputs: Floats  # (n, width), what the net takes
    vectors: Int8  # (n, 64), what goes into outcomes
    scores: npt.NDArray[np.uint8]  # (n, classes), what the device's model says
    truth: Ints
    learn: list[Ints]  # rows by site
    test: list[Ints]
    novel: tuple[int, ...] = ()
    tiny: int | None = None

    @property
    def classes(self) -> int:
        return self.scores.shape[1]


def given(world: World, noise: float) -> Ints:
    """What sites believe their labels to be: a share `noise` is another one."""
    rng = np.random.default_rng([world.seed, 77])
    wrong = rng.random(len(world.truth)) < noise
    shift = rng.integers(1, world.classes, len(world.truth))
    return np.where(wrong, (world.truth + shift) % world.classes, world.truth)


# -- encoders --------------------------------------------------------------------------


def device(model: bytes, inputs: Int8) -> tuple[Int8, npt.NDArray[np.uint8]]:
    """(vectors, scores) of the int8 reference kernels."""
    found = run_int8(model, inputs)
    return found.vectors(MULTIPLIER, SHIFT), found.scores()


def device_scores(model: bytes, inputs: Int8) -> npt.NDArray[np.uint8]:
    """(n, classes) of a model with one output, row by row."""
    interpreter = reference(model)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    sink = interpreter.get_output_details()[0]["index"]
    out = []
    for row in inputs:
        interpreter.set_tensor(source, row[None])
        interpreter.invoke()
        out.append(interpreter.get_tensor(sink)[0].astype(np.int64) + 128)
    return np.array(out).astype(np.uint8)


@cache
def recordings() -> tuple[Recording, ...]:
    return tuple(watch_data.load())


RECIPE = mlp.Recipe(epochs=10, drop=0.2, noise=0.2)
VARIANTS = 5


def watch_encoder(seed: int, novel: tuple[int, ...]) -> tuple[mlp.Net, bytes, Ints, Ints, float]:
    """(net, .tflite, feature offset, feature mul, step of an int8 input); kept in a cache."""
    text = repr((seed, novel, RECIPE, VARIANTS, "watch 1"))
    path = CACHE / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.npz"
    if not path.exists():
        known = [r for r in recordings() if r.person in LEARNT and r.label not in novel]
        windows, labels, _ = cut(known)
        scale = scaling(stats8(windows))
        more, more_labels = augmented(known, np.random.default_rng(seed), VARIANTS, 0.15, 0.2, 0.15)
        x = np.concatenate([scale.floats(windows), scale.floats(more)])
        y = np.eye(7, dtype=np.float32)[np.concatenate([labels, more_labels])]
        net = mlp.train(x, y, (48, 64, 64, 7), RECIPE, seed)
        model = write_mlp(net, x[: len(windows)], Quantiser(scale.step, 0), "encoder")
        CACHE.mkdir(parents=True, exist_ok=True)
        made = path.with_suffix(f".{np.random.default_rng().integers(1 << 40)}.npz")
        np.savez(
            made,
            *net.weights,
            *net.biases,
            np.frombuffer(model, np.uint8),
            scale.offset,
            scale.mul,
            np.array(scale.step),
        )
        made.replace(path)
    with np.load(path) as found:
        a = [found[f"arr_{i}"] for i in range(10)]
    return mlp.Net(a[:3], a[3:6]), a[6].tobytes(), a[7], a[8], float(a[9])


def training_vectors(seed: int, novel: tuple[int, ...], count: int = 8000) -> Int8:
    """Vectors of varied windows of people 1-3: what a codebook is trained on."""
    _, model, offset, mul, _ = watch_encoder(seed, novel)
    known = [r for r in recordings() if r.person in LEARNT and r.label not in novel]
    ordinary = sum(len(r.samples) // HOP for r in known)
    more, _ = augmented(known, np.random.default_rng([seed, 8]), count / ordinary, 0.2, 0.25, 0.2)
    return device(model, _to_int8(stats8(more), offset, mul))[0]


# -- watch -----------------------------------------------------------------------------


@cache
def _cut(person: int, side: int, part: str) -> tuple[Ints, Ints]:
    """(windows, labels) of a person's arm. part: "all", or for development "first", "rest"."""
    mine = [r for r in recordings() if r.person == person and r.side == side]
    if part == "first":
        mine = [r._replace(samples=r.samples[: len(r.samples) * 6 // 10]) for r in mine]
    if part == "rest":
        mine = [r._replace(samples=r.samples[len(r.samples) * 6 // 10 :]) for r in mine]
    return cut(mine)[:2]


def _arms(seed: int) -> tuple[list[Ints], list[Ints], list[Ints], list[Ints]]:
    """Features before scaling and labels, by site: (learn x, learn y, test x, test y)."""
    out: tuple[list[Ints], list[Ints], list[Ints], list[Ints]] = ([], [], [], [])
    rng = np.random.default_rng([seed, 33])
    for person in SITES:
        if seed >= DEVELOPMENT:
            learn, test = _cut(person, 0, "first"), _cut(person, 0, "rest")
            test = (_worn(test[0] * MIRROR, *_wearing(rng)), test[1])
        else:
            learn, test = _cut(person, 0, "all"), _cut(person, 1, "all")
        out[0].append(stats8(learn[0]))
        out[1].append(learn[1])
        out[2].append(stats8(test[0]))
        out[3].append(test[1])
    return out


def _wearing(rng: np.random.Generator) -> "tuple[npt.NDArray[np.float64], float]":
    """How a watch sits and how its wearer moves; as varied as in the encoder's training."""
    return rotations(rng.normal(0, 0.15, (1, 3)))[0].T, float(np.exp(rng.normal(0, 0.15)))


def watch(seed: int, scenario: str) -> World:
    rng = np.random.default_rng([seed, (*SCENARIOS, "rare").index(scenario)])
    new = {"novel": 2, "rare": 1}.get(scenario, 0)
    novel = tuple(int(c) for c in np.sort(rng.choice(7, new, False)))
    net, model, offset, mul, step = watch_encoder(seed, novel)
    learn_x, learn_y, test_x, test_y = _arms(seed)
    raw = np.concatenate(learn_x + test_x)
    truth = np.concatenate(learn_y + test_y)
    ints = _to_int8(raw, offset, mul)
    vectors, scores = device(model, ints)
    learn, test, at = [], [], 0
    for y in learn_y:
        learn.append(np.arange(at, at + len(y)))
        at += len(y)
    for y in test_y:
        test.append(np.arange(at, at + len(y)))
        at += len(y)
    for k in range(len(SITES)):
        rows = learn[k]
        if novel and k not in KNOWING:
            rows = rows[~np.isin(truth[rows], novel)]
        if scenario in ("skew4", "skew2"):
            rows = rows[np.isin(truth[rows], rng.choice(7, int(scenario[4:]), False))]
        rows = rng.permutation(rows)
        if scenario == "rare" and k in RARE_AT:
            new_rows = np.isin(truth[rows], novel)
            rows = rows[~new_rows | (np.cumsum(new_rows) <= RARE_AT[k])]
        learn[k] = rows[:TINY_WINDOWS] if k == TINY else rows
    inputs = ints.astype(np.float32) * np.float32(step)
    return World(
        scenario, seed, net, model, inputs, vectors, scores, truth, learn, test, novel, TINY
    )


def _to_int8(raw: Ints, offset: Ints, mul: Ints) -> Int8:
    from models.train import SHIFT as FEATURE_SHIFT
    from models.windows import to_int8

    return to_int8(raw, offset, mul, FEATURE_SHIFT)


# -- villages --------------------------------------------------------------------------


def village(seed: int, sites: int) -> World:
    """`sites` made-up wearers, each with 4 of the 7 classes and 40 windows to learn from."""
    net, model, offset, mul, step = watch_encoder(seed, ())
    rng = np.random.default_rng([seed, 99])
    rows_x, rows_y, learn, test, at = [], [], [], [], 0
    for k in range(sites):
        person = SITES[k % len(SITES)]
        turn, gain = _wearing(rng)
        classes = rng.choice(7, 4, False)
        for side, most, out in ((0, 40, learn), (1, 100, test)):
            windows, labels = _cut(person, side, "all")
            chosen = rng.permutation(len(labels))
            if side == 0:
                chosen = chosen[np.isin(labels[chosen], classes)]
            chosen = chosen[:most]
            out.append(np.arange(at, at + len(chosen)))
            at += len(chosen)
            rows_x.append(stats8(_worn(windows[chosen], turn, gain)))
            rows_y.append(labels[chosen])
    ints = _to_int8(np.concatenate(rows_x), offset, mul)
    vectors, scores = device(model, ints)
    return World(
        f"village {sites}",
        seed,
        net,
        model,
        ints.astype(np.float32) * np.float32(step),
        vectors,
        scores,
        np.concatenate(rows_y),
        learn,
        test,
    )


def _worn(windows: Ints, turn: npt.NDArray[np.float64], gain: float) -> Ints:
    out = windows.astype(np.float64)
    out[:, :, :3] = out[:, :, :3] @ turn
    out[:, :, 3:] = out[:, :, 3:] @ turn
    centre = out.mean(1, keepdims=True)
    centre[:, :, 3:] = 0
    return np.clip(np.rint(centre + (out - centre) * gain), -32768, 32767).astype(np.int64)


# -- digits ----------------------------------------------------------------------------


def digits(seed: int, alpha: float) -> World:
    from sklearn.datasets import load_digits

    from benchmarks._recall_data import _moved

    data = load_digits()
    images, labels = data.data.astype(np.float32) / 16, data.target.astype(np.int64)
    # Development seeds split off images of their own, so that no tested image chose anything.
    halves = np.random.default_rng(5).permutation(len(images))
    mine = halves[:700] if seed >= DEVELOPMENT else halves[700:]
    rng = np.random.default_rng([seed, 55])
    mine = rng.permutation(mine)
    seen, rest = mine[:150], mine[150:]
    tested, rest = rest[: len(rest) // 3], rest[len(rest) // 3 :]

    def varied(rows: Ints, times: int) -> Floats:
        x = images[np.tile(rows, times)].reshape(-1, 8, 8)
        return np.clip(_moved(x, rng).reshape(-1, 64), 0, 1.2).astype(np.float32)

    x = np.concatenate([images[seen], varied(seen, 20)])
    y = np.eye(10, dtype=np.float32)[np.tile(labels[seen], 21)]
    net = mlp.train(x, y, (64, 64, 64, 10), mlp.Recipe(epochs=12, drop=0.1), seed)
    unit = quantiser(x)
    model = write_mlp(net, x, unit, "encoder")
    owner = np.full(len(rest), -1)
    for c in range(10):
        rows = np.flatnonzero(labels[rest] == c)
        owner[rows] = rng.choice(7, len(rows), p=rng.dirichlet(np.full(7, alpha)))
    learn, test, rows_x, rows_y, at = [], [], [], [], 0
    angles = rng.normal(0, 0.25, 7)
    for part, out in ((None, learn), (tested, test)):
        for k in range(7):
            rows = rest[owner == k] if part is None else part
            rows = rows if len(rows) else rest[:1]
            rows_x.append(_turned(images[rows], angles[k]))
            rows_y.append(labels[rows])
            out.append(np.arange(at, at + len(rows)))
            at += len(rows)
    ints = np.rint(np.concatenate(rows_x) / unit.scale + unit.zero_point)
    ints = np.clip(ints, -128, 127).astype(np.int8)
    vectors, scores = device(model, ints)
    inputs = (ints.astype(np.float32) - unit.zero_point) * np.float32(unit.scale)
    tiny = int(np.argmin([len(rows) for rows in learn]))
    truth = np.concatenate(rows_y)
    name = f"digits {alpha}"
    return World(name, seed, net, model, inputs, vectors, scores, truth, learn, test, (), tiny)


def _turned(images: Floats, angle: float) -> Floats:
    """8 x 8 images turned about their middle, bilinear."""
    y, x = np.mgrid[0:8, 0:8] - 3.5
    down = np.cos(angle) * y - np.sin(angle) * x + 3.5
    right = np.sin(angle) * y + np.cos(angle) * x + 3.5
    padded = np.pad(images.reshape(-1, 8, 8), ((0, 0), (2, 3), (2, 3)))
    top, left = np.floor(down).astype(int), np.floor(right).astype(int)
    fy, fx = down - top, right - left

    def pixel(dy: int, dx: int) -> Floats:
        found: Floats = padded[:, np.clip(top + dy + 2, 0, 12), np.clip(left + dx + 2, 0, 12)]
        return found

    out = pixel(0, 0) * ((1 - fy) * (1 - fx)) + pixel(1, 0) * (fy * (1 - fx))
    out = out + pixel(0, 1) * ((1 - fy) * fx) + pixel(1, 1) * (fy * fx)
    return out.reshape(-1, 64).astype(np.float32)
