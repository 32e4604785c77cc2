"""The shipped models on recorded windows and random bytes, and TensorFlow Lite Micro's answers.

    python -m tests.zoo.shipped [--python VENV/bin/python]

writes tests/vectors/tflite_shipped.json: for each model, how many rows there are, and the
first half of the SHA-256 of all outputs for each STEP rows, so that a difference can be
found. The options are those of make_golden.py.
"""

import argparse
import json
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import numpy as np

from edge_agent.cpython.sensors.replay import ReplayFile
from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain
from edge_agent.features import Features
from edge_agent.tools.tap import tap

from .make_golden import ORACLE, VECTORS, digest, oracle_venv, run_oracle

MODELS = Path(__file__).resolve().parents[2] / "models"
STEP = 50
WINDOW, HOP = 128, 64

# name, file content, rows: int8 inputs, of recorded windows first; recorded: how many.
Shipped = namedtuple("Shipped", ("name", "data", "rows", "recorded"))


def domain():
    return Domain.load((MODELS / "watch.domain").read_bytes(), HostCrypto())


def windows(every):
    """Samples of each `every`-th window of all recordings."""
    file = ReplayFile(MODELS / "data" / "watch_replay.bin")
    for recording in file.recordings:
        for n in range(0, file.windows(recording, WINDOW, HOP), every):
            yield file.read(recording, n * HOP, WINDOW)


def cnn_features():
    Spec = namedtuple("Spec", "kind axes window hop offset mul shift")
    return Features(Spec(**json.loads((MODELS / "watch_cnn_features.json").read_text())))


def shipped():
    """The perceptron, and the convolutional model with an embedding tapped."""
    rng = np.random.default_rng(7)
    for name, features, every, data in (
        ("mlp", Features(domain().features), 5, (MODELS / "watch_mlp_int8.tflite").read_bytes()),
        ("cnn", cnn_features(), 12, tap((MODELS / "watch_cnn_int8.tflite").read_bytes())),
    ):
        rows = [features.apply(samples) for samples in windows(every)]
        recorded = len(rows)
        rows += [rng.integers(0, 256, features.length, np.uint8).tobytes() for _ in range(100)]
        yield Shipped(name, data, rows, recorded)


def digests(outputs):
    """Of all outputs of each STEP rows; outputs: bytes for each row."""
    return [digest(b"".join(outputs[k : k + STEP])) for k in range(0, len(outputs), STEP)]


def read():
    return json.loads((VECTORS / "tflite_shipped.json").read_text())["models"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", help="interpreter of a venv with tflite_micro")
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in shipped():
            (folder / (model.name + ".tflite")).write_bytes(model.data)
            (folder / (model.name + ".in")).write_bytes(b"".join(model.rows))
        run_oracle(args.python or oracle_venv(folder), folder)
        for model in shipped():
            path = folder / (model.name + ".out")
            if not path.exists():
                sys.exit(f"{model.name}: refused by TensorFlow Lite Micro")
            out = path.read_bytes()
            each = len(out) // len(model.rows)
            outputs = [out[k * each : (k + 1) * each] for k in range(len(model.rows))]
            found[model.name] = {"rows": len(outputs), "each": each, "digests": digests(outputs)}
    about = f"Outputs of the shipped models on {ORACLE}; written by tests/zoo/shipped.py"
    text = json.dumps({"about": about, "step": STEP, "models": found}, indent=1)
    (VECTORS / "tflite_shipped.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
