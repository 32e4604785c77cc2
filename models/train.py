"""Train the shipped encoder, write it, the replay file and the signed domain.

    python -m models.train [--wheel PATH] [--out DIR] [--owner-key FILE] [--new-owner]
    python -m models.train --cross-validate
    python -m models.train --check shipped|seven

The shipped encoder sees people 1-3 only; people 4-10 are for testing and for replay.
Settings were chosen by leave-one-person-out cross-validation on people 1-3 alone
(`--cross-validate` prints it for the present settings: 0.785); the seed is 1 and was not
chosen. Be careful with that figure and with the one for people 4-10: three people differ
among themselves by 0.1, and what earlier recipes reached on people 4-10, 0.75 to 0.77, was
seen during development, though nothing was chosen by it.

Recipe: several perceptrons are trained on augmented windows; their mean opinion on
further augmented windows, and on mixtures of them, then teaches the one small perceptron
that ships. Averaging takes out most of the luck of a single training run.

The domain is signed only when the model differs from the one that the present domain
file names, and only with the owner's key: a file of 64 hex digits, mode 0600, not in the
repository. Without the key nothing but `--new-owner`, which makes a domain of another
owner and therefore another id, gets a new model into a domain.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

# The matrices are small: more threads only wait for each other. Before numpy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from models import mlp, watch_data
from models.reference import run_int8
from models.tflite_writer import Quantiser, write_mlp
from models.watch_data import Recording
from models.windows import augmented, cut, stats8, to_int8

HERE = Path(__file__).resolve().parent
SHIPPED_PEOPLE = (1, 2, 3)
REPLAY_PEOPLE = tuple(range(4, 11))
SEED = 1
SIZES = (48, 64, 64, 7)
SHIFT = 16
RANGE = 4.0  # int8 covers this many standard deviations to either side


class Settings(NamedTuple):
    """Chosen by leaving out one of the people trained on, never by those tested on."""

    teachers: int = 8
    teacher: mlp.Recipe = mlp.Recipe(epochs=10, drop=0.2, noise=0.2)
    teacher_variants: int = 5  # augmented windows for every ordinary one
    student: mlp.Recipe = mlp.Recipe(epochs=15, decay=1e-5)
    student_variants: int = 24
    rotation: float = 0.15
    speed: float = 0.2
    vigour: float = 0.15

    def more(
        self, recordings: list[Recording], rng: np.random.Generator, variants: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        return augmented(recordings, rng, variants, self.rotation, self.speed, self.vigour)


SHIPPED = Settings()
# For the experiment with seven people. Leaving one of the seven out, accuracy is 0.846 with
# these settings and 0.847 with drop-out: of equals the simpler was taken. The three people
# tested on happen to like it: 0.88, where recipes with drop-out had 0.81 to 0.83.
SEVEN_PEOPLE = Settings(
    teachers=4,
    teacher=mlp.Recipe(epochs=10, noise=0.1),
    teacher_variants=4,
    student=mlp.Recipe(epochs=10, decay=1e-5),
    student_variants=6,
)

Int8 = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]


class Trained(NamedTuple):
    tflite: bytes
    offset: list[int]
    mul: list[int]
    shift: int
    float_accuracy: float
    net: mlp.Net


class Scaling(NamedTuple):
    """Feature parameters; an int8 input q stands for q * step."""

    offset: npt.NDArray[np.int64]
    mul: npt.NDArray[np.int64]
    step: float

    def inputs(self, windows: npt.NDArray[np.int64]) -> Int8:
        return to_int8(stats8(windows), self.offset, self.mul, SHIFT)

    def floats(self, windows: npt.NDArray[np.int64]) -> Floats:
        return self.inputs(windows).astype(np.float32) * np.float32(self.step)


def scaling(features: npt.NDArray[np.int64]) -> Scaling:
    deviation = np.maximum(features.std(0), 1.0)
    step = RANGE / 128
    mul = np.rint((1 << SHIFT) / (deviation * step)).astype(np.int64)
    return Scaling(np.rint(features.mean(0)).astype(np.int64), mul, step)


def fit(
    recordings: list[Recording], seed: int, settings: Settings = SHIPPED, quiet: bool = True
) -> tuple[mlp.Net, Scaling, Floats]:
    """(student, scaling, ordinary training windows as dequantised inputs)."""
    rng = np.random.default_rng(1000 + seed)
    windows, labels, _ = cut(recordings)
    scale = scaling(stats8(windows))
    plain = scale.floats(windows)
    truth = np.eye(SIZES[-1], dtype=np.float32)
    epochs = settings.teachers * settings.teacher.epochs + settings.student.epochs
    with tqdm(total=epochs, desc="Training", unit="epoch", disable=quiet) as bar:
        teachers = []
        for k in range(settings.teachers):
            more, more_labels = settings.more(recordings, rng, settings.teacher_variants)
            x = np.concatenate([plain, scale.floats(more)])
            y = truth[np.concatenate([labels, more_labels])]
            teachers.append(mlp.train(x, y, SIZES, settings.teacher, seed * 100 + k, bar.update))
        more, _ = settings.more(recordings, rng, settings.student_variants)
        x = np.concatenate([plain, scale.floats(more)])
        # Mixtures of two windows mean no exercise, but they show the student what its
        # teachers think between the windows, and it then agrees with them far more often.
        share = rng.random((len(x), 1), dtype=np.float32)
        x = np.concatenate([x, x * share + x[rng.permutation(len(x))] * (1 - share)])
        opinion = np.mean([mlp.softmax(mlp.forward(t, x)[-1]) for t in teachers], 0)
        student = mlp.train(x, opinion, SIZES, settings.student, seed * 100 + 99, bar.update)
    return student, scale, plain


def train(
    recordings: list[Recording],
    tests: list[Recording],
    seed: int = SEED,
    settings: Settings = SHIPPED,
    quiet: bool = True,
    description: str = "watch exercises, int8 perceptron",
) -> Trained:
    """Train on some recordings; float accuracy on others."""
    student, scale, plain = fit(recordings, seed, settings, quiet)
    data = write_mlp(student, plain, Quantiser(scale.step, 0), description)
    windows, labels, _ = cut(tests)
    guess = mlp.forward(student, scale.floats(windows))[-1].argmax(1)
    return Trained(
        data,
        scale.offset.tolist(),
        scale.mul.tolist(),
        SHIFT,
        float((guess == labels).mean()),
        student,
    )


def accuracy(trained: Trained, tests: list[Recording]) -> tuple[float, dict[int, float]]:
    """int8 accuracy over all windows, and per person."""
    windows, labels, persons = cut(tests)
    offset, mul = np.array(trained.offset), np.array(trained.mul)
    inputs = to_int8(stats8(windows), offset, mul, trained.shift)
    right = run_int8(trained.tflite, inputs).probabilities.argmax(1) == labels
    each = {int(p): round(float(right[persons == p].mean()), 4) for p in np.unique(persons)}
    return float(right.mean()), each


def people(recordings: list[Recording], wanted: tuple[int, ...]) -> list[Recording]:
    return [r for r in recordings if r.person in wanted]


def cross_validate(recordings: list[Recording], seeds: int = 3) -> None:
    """Leave one of people 1-3 out; prints student accuracy as floats."""
    everyone = []
    for out in SHIPPED_PEOPLE:
        rest = people(recordings, tuple(p for p in SHIPPED_PEOPLE if p != out))
        windows, labels, _ = cut(people(recordings, (out,)))
        found = []
        for seed in range(seeds):
            student, scale, _ = fit(rest, seed)
            guess = mlp.forward(student, scale.floats(windows))[-1].argmax(1)
            found.append(float((guess == labels).mean()))
        everyone += found
        print(f"person {out} left out: {np.mean(found):.4f} (sd {np.std(found):.4f})")
    print(f"mean {np.mean(everyone):.4f} over {seeds} seeds")


GOALS = {"shipped": 0.77, "seven": 0.83}


def check(recordings: list[Recording], which: str) -> dict[str, Any]:
    """Train again in memory. "shipped": people 1-3; "seven": people 1-7, tested on 8-10."""
    if which == "shipped":
        learn, test, settings = SHIPPED_PEOPLE, REPLAY_PEOPLE, SHIPPED
    else:
        learn, test, settings = tuple(range(1, 8)), (8, 9, 10), SEVEN_PEOPLE
    tests = people(recordings, test)
    trained = train(people(recordings, learn), tests, settings=settings)
    overall, each = accuracy(trained, tests)
    return {
        "experiment": which,
        "trained on people": learn,
        "float": round(trained.float_accuracy, 4),
        "int8": round(overall, 4),
        "int8 by person": each,
        "goal": GOALS[which],
        "ok": overall >= GOALS[which],
        "tflite": trained.tflite.hex(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--wheel", type=Path, help="the seglearn wheel (default: pip fetches it)")
    parser.add_argument("--out", type=Path, default=HERE, help="where to write (default: models/)")
    parser.add_argument("--owner-key", type=Path, help="default: owner.key in the --out directory")
    parser.add_argument("--new-owner", action="store_true", help="make a key and another domain")
    parser.add_argument("--cross-validate", action="store_true", help="print, write nothing")
    parser.add_argument(
        "--check", choices=sorted(GOALS), help="train again in memory, print JSON, 1 below goal"
    )
    options = parser.parse_args()
    recordings = watch_data.load(options.wheel)
    if options.cross_validate:
        cross_validate(recordings)
        return 0
    if options.check:
        result = check(recordings, options.check)
        print(json.dumps(result))
        return 0 if result["ok"] else 1
    started = time.monotonic()
    tests = people(recordings, REPLAY_PEOPLE)
    trained = train(people(recordings, SHIPPED_PEOPLE), tests, quiet=False)
    seconds = time.monotonic() - started
    overall, each = accuracy(trained, tests)
    files = {
        "data/watch_replay.bin": watch_data.replay_bytes(tests),
        "watch_mlp_int8.tflite": trained.tflite,
        "watch_features.json": (json.dumps(features(trained)) + "\n").encode(),
    }
    print(f"{len(trained.tflite)} bytes, {seconds:.1f} s of training")
    print(f"people 4-10: float {trained.float_accuracy:.4f}, int8 {overall:.4f}; by person {each}")
    out: Path = options.out
    status = write(out, files, options.owner_key or out / "owner.key", options.new_owner)
    if status == 0:
        note(
            out / "provenance.json",
            {
                "data/watch_replay.bin": entry(
                    files["data/watch_replay.bin"], "models/watch_data.py, people 4-10"
                ),
                "watch_mlp_int8.tflite": {
                    **entry(trained.tflite, "models/train.py"),
                    "trained on people": list(SHIPPED_PEOPLE),
                    "seed": SEED,
                    "windows tested": len(cut(tests)[1]),
                    "accuracy float, people 4-10": round(trained.float_accuracy, 4),
                    "accuracy int8, people 4-10": round(overall, 4),
                    "accuracy int8 by person": each,
                },
            },
        )
    return status


def write(out: Path, files: dict[str, bytes], key_file: Path, new_owner: bool) -> int:
    """Put the files in place together with a domain that fits them, or nothing at all."""
    from models.make_domain import update

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".new-") as name:
        new = Path(name)
        present = out / "watch.domain"
        if present.exists():
            shutil.copy(present, new)
        for path, data in files.items():
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            (new / path).write_bytes(data)
        status = update(new, key_file, new_owner)
        if status:
            print(f"Nothing was written to {out}", file=sys.stderr)
            return status
        for path in (*files, "watch.domain"):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(new / path, out / path)
    return 0


def features(trained: Trained) -> dict[str, Any]:
    return {
        "kind": "stats8",
        "axes": 6,
        "window": 128,
        "hop": 64,
        "offset": trained.offset,
        "mul": trained.mul,
        "shift": trained.shift,
    }


def entry(data: bytes, made_by: str) -> dict[str, Any]:
    return {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "made by": made_by,
        "source": f"{watch_data.PACKAGE}, wheel sha256 {watch_data.WHEEL_SHA256}",
    }


def note(path: Path, entries: dict[str, Any]) -> None:
    """Add to or replace in the provenance file."""
    known = json.loads(path.read_text()) if path.exists() else {}
    known.update(entries)
    path.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
