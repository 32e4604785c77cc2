"""A domain of your own out of a description and labelled lines: model, domain, codebook.

    python -m models.new_domain fan.json fan.csv [more.csv ...] --key owner.key

Lines are samples: a header names the columns, the column "label" says what is true, every other
column is an axis of the sensor. Lines that follow each other with the same label are one
recording. The description is that of `edge-gateway domain init` (gateway/domain_file.py), with a
section more:

    "training": {"kind": "stats8",        features: stats8 of a window, or raw
                 "window": 64, "hop": 32, in samples; raw with window 1 is a row of a table
                 "models": {"fan": [64, 64]},  hidden layers of each model to train
                 "encoder": "fan"}        the model whose last hidden layer is the vector,
                                          or "features": the features are, with any model

Beside the description it writes, for a description fan.json,

    fan.tflite         (one for each model) int8, outputs "probabilities" and "embedding"
    fan.space.json     the vector space: name it as "space" in the description
    fan.domain         signed with the key, which is made when there is none
    fan.codebook       for gateways that find each other's outcomes
    fan.sensor.json    the "sensor" section for `edge-agent init --sensor`: columns and scales

The last fifth of each label's windows is held out; what the int8 models make of it is printed.
The codebook learns from the windows trained on, varied by noise until there are enough.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

# As in train.py: before numpy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt

from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import PROFILE, Domain
from edge_agent.errors import ConfigError, EdgeError
from edge_agent.fingerprint import PURPOSE_PROJECT, VECTOR_BYTES, Projection
from gateway.domain_file import load_or_make_key, make, read_json, replace
from gateway.train import train
from models import mlp
from models.reference import run_int8
from models.tflite_writer import Quantiser, write_mlp
from models.train import RANGE, SHIFT
from models.windows import stats8, to_int8

SEED = 1
COUNTS = 16_000  # of int16: the largest reading of an axis
HELD_OUT = 5  # one window of so many
VECTORS = 4_000  # for the codebook
VARIED = 0.3  # standard deviation of the noise for them, in those of the features
STEPS = 3_000  # of training, about
REGIONS, PARTS = 64, 8  # of the codebook: small networks need no more
VECTOR_SHIFT = 20

Ints = npt.NDArray[np.int64]
Int8 = npt.NDArray[np.int8]


class Lines(NamedTuple):
    """axes: names of columns.  values: (n, axes).  labels: (n,) texts.  columns: where they are."""

    axes: list[str]
    columns: list[int]
    values: npt.NDArray[np.float64]
    labels: list[str]


def read_lines(path: Path) -> Lines:
    try:
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise ConfigError(error.strerror or str(error), str(path), "Name a CSV file")
    if not rows or "label" not in rows[0]:
        raise ConfigError("has no column named label", str(path), "Its first line names columns")
    at = rows[0].index("label")
    columns = [i for i in range(len(rows[0])) if i != at]
    try:
        values = np.array([[float(row[i]) for i in columns] for row in rows[1:]])
        labels = [row[at] for row in rows[1:]]
    except (ValueError, IndexError) as error:
        raise ConfigError(str(error), str(path), "Every line needs a number for each axis")
    return Lines([rows[0][i] for i in columns], columns, values, labels)


def cut(parts: list[Lines], names: list[str], scale: Any, window: int, hop: int) -> Any:
    """(windows (n, window, axes) of int16 counts, label numbers)."""
    windows, labels = [], []
    for part in parts:
        counts = np.clip(np.rint(part.values * scale), -32768, 32767).astype(np.int64)
        changes = [i for i, name in enumerate(part.labels) if i and name != part.labels[i - 1]]
        for a, b in zip([0, *changes], [*changes, len(counts)], strict=True):
            if part.labels[a] not in names:
                raise ConfigError(f"label {part.labels[a]!r} is not in the description", "labels")
            for start in range(a, b - window + 1, hop):
                windows.append(counts[start : start + window])
                labels.append(names.index(part.labels[a]))
    missing = [name for i, name in enumerate(names) if labels.count(i) < HELD_OUT]
    if missing:
        raise ConfigError(
            f"fewer than {HELD_OUT} windows of {', '.join(missing)}", "training", "Record more"
        )
    return np.stack(windows), np.array(labels)


def features_of(windows: Ints, kind: str, given: dict[str, Any] | None = None) -> Any:
    """(features before scaling, their parameters). given: the parameters, when known."""
    if kind == "stats8":
        found, axes = stats8(windows), windows
    elif kind == "raw":
        found, axes = windows.reshape(len(windows), -1), windows
    else:
        raise ConfigError(f"is {kind!r}", "training.kind", "stats8 or raw")
    if given is None:
        each = found if kind == "stats8" else axes.reshape(-1, axes.shape[2])
        deviation = np.maximum(each.std(0), 1.0)
        mul = np.rint((1 << SHIFT) / (deviation * RANGE / 128)).astype(int)
        given = {"offset": np.rint(each.mean(0)).astype(int).tolist(), "mul": mul.tolist()}
    return found, given


def scaled(windows: Ints, kind: str, parameters: dict[str, Any]) -> Int8:
    """The model's int8 input, as edge_agent/features.py makes it; a test compares the two."""
    found, _ = features_of(windows, kind, parameters)
    times = found.shape[1] // len(parameters["mul"])
    offset, mul = (np.tile(np.array(parameters[name]), times) for name in ("offset", "mul"))
    return to_int8(found, offset, mul, SHIFT)


def embedded(tflite: bytes | None, inputs: Int8) -> tuple[Int8, int]:
    """What the domain's encoder gives, and its zero point; no model: the inputs themselves."""
    if tflite is None:
        return inputs, 0
    found = run_int8(tflite, inputs)
    return found.embeddings, found.zero_point


def multiplier(values: npt.NDArray[np.int64]) -> int:
    """So that one number in a thousand is clamped."""
    if values.shape[1] != VECTOR_BYTES:
        # Any signs will do to see how large the sums are.
        signs = Projection(HostCrypto(), bytes(8), PURPOSE_PROJECT, VECTOR_BYTES, values.shape[1])
        values = np.array([signs.apply(row) for row in values[:500].tolist()])
    top = max(8.0, float(np.quantile(np.abs(values), 0.999)))
    return round(127 / top * (1 << VECTOR_SHIFT))


def fitted(inputs: Int8, labels: Ints, hidden: list[int], names: int, text: str) -> bytes:
    """A trained perceptron as int8 .tflite."""
    step = RANGE / 128
    x = inputs.astype(np.float32) * np.float32(step)
    batch = 32
    epochs = max(4, STEPS // max(1, len(x) // batch))
    recipe = mlp.Recipe(epochs=epochs, batch=batch, decay=1e-3, noise=0.1)
    truth = np.eye(names, dtype=np.float32)[labels]
    net = mlp.train(x, truth, (x.shape[1], *hidden, names), recipe, SEED)
    return write_mlp(net, x, Quantiser(step, 0), text)


def build(description: Path, data: list[Path], key: Path, force: bool) -> dict[str, Any]:
    """Everything, beside the description, or nothing; what was made, for printing."""
    with tempfile.TemporaryDirectory(dir=description.parent, prefix=".new-") as name:
        new = Path(name)
        report = _build(description, data, key, force, new)
        for path in new.iterdir():
            os.replace(path, description.parent / path.name)
    return report


def _build(
    description: Path, data: list[Path], key: Path, force: bool, folder: Path
) -> dict[str, Any]:
    """The files in `folder`."""
    found = read_json(description)
    (folder / description.name).write_bytes(description.read_bytes())
    training, names = found.get("training"), found.get("labels")
    if not isinstance(training, dict) or not isinstance(names, list) or "name" not in found:
        raise ConfigError(
            "needs name, labels and training", str(description), "See models/new_domain.py"
        )
    kind, models = training.get("kind", "stats8"), training.get("models")
    window, hop = training.get("window", 1), training.get("hop", 1)
    if not isinstance(models, dict) or not models:
        raise ConfigError("is missing", "training.models", 'Like {"fan": [64, 64]}')
    encoder = training.get("encoder", next(iter(models)))
    if encoder not in (*models, PROFILE):
        raise ConfigError(f"is {encoder!r}", "training.encoder", f"One of the models, or {PROFILE}")
    parts = [read_lines(path) for path in data]
    if any(part.columns != parts[0].columns for part in parts):
        raise ConfigError("differ in their columns", "the CSV files", "Use the same for all")
    top = np.maximum(np.max([np.abs(part.values).max(0) for part in parts], 0), 1e-9)
    scale = [float(f"{COUNTS / value:.3g}") for value in top]
    windows, labels = cut(parts, names, scale, window, hop)

    held = np.zeros(len(labels), bool)
    for label in range(len(names)):
        mine = np.flatnonzero(labels == label)
        held[mine[-(len(mine) // HELD_OUT) :]] = True
    _, parameters = features_of(windows[~held], kind)
    inputs = scaled(windows, kind, parameters)
    stem = description.stem
    report: dict[str, Any] = {"windows": len(labels), "held out": int(held.sum())}
    made = {}
    for name, hidden in models.items():
        made[name] = fitted(inputs[~held], labels[~held], hidden, len(names), found["name"])
        (folder / f"{name}.tflite").write_bytes(made[name])
        right = run_int8(made[name], inputs[held]).probabilities.argmax(1) == labels[held]
        report[f"{name}.tflite"] = f"{len(made[name])} bytes, right in {right.mean():.1%}"

    net = made.get(encoder)
    embedding, zero = embedded(net, inputs[~held])
    values = embedding.astype(np.int64) - zero
    shape = {"kind": kind, "axes": len(scale), "window": window, "hop": hop, **parameters}
    space = {
        "encoder": PROFILE if net is None else f"{encoder}.tflite",
        "dim": values.shape[1],
        "multiplier": multiplier(values),
        "shift": VECTOR_SHIFT,
        "features": {**shape, "shift": SHIFT},
    }
    (folder / f"{stem}.space.json").write_text(json.dumps(space) + "\n")
    sensor = {"kind": "csv", "path": "-", "columns": parts[0].columns, "scale": scale}
    (folder / f"{stem}.sensor.json").write_text(json.dumps(sensor) + "\n")

    seed, new = load_or_make_key(key)
    if new:
        report["key"] = f"{key} is new: keep it, and keep it secret"
    signed = make(folder / description.name, seed)
    domain = Domain.load(signed, HostCrypto())
    # As int8, more of the same: what gateways will meet is not what was recorded here.
    rng = np.random.default_rng(SEED)
    chosen = inputs[~held][rng.integers((~held).sum(), size=VECTORS)].astype(float)
    varied = chosen + rng.normal(0, VARIED * 128 / RANGE, chosen.shape)
    more, zero = embedded(net, np.clip(np.rint(varied), -128, 127).astype(np.int8))
    vectors = [domain.vector(row.tobytes(), zero) for row in more]
    table = np.frombuffer(b"".join(vectors), np.int8).reshape(-1, VECTOR_BYTES)
    book = train(domain, table, seed, note=f"{VECTORS} varied windows", k1=REGIONS, k2=PARTS)
    (folder / f"{stem}.codebook").write_bytes(book)
    # Last: it refuses to replace another domain, and then nothing is replaced.
    state = replace(description.parent / f"{stem}.domain", signed, force)
    report[f"{stem}.domain"] = f"{domain.id.hex()}, {state}"
    report[f"{stem}.codebook"] = f"{len(book)} bytes"
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("description", type=Path, help="JSON, see above")
    parser.add_argument("data", type=Path, nargs="+", help="CSV files of labelled samples")
    parser.add_argument(
        "--key", type=Path, required=True, help="the owner's key; made when there is none"
    )
    parser.add_argument("--force", action="store_true", help="replace another domain")
    o = parser.parse_args()
    try:
        report = build(o.description, o.data, o.key, o.force)
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 3
    for name, value in report.items():
        print(f"{name:18} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
