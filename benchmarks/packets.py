"""What one outcome weighs on the wire, by the size of the model that made it.

    python benchmarks/packets.py [--quick] [--json FILE] [--check]

For each model: a window through the real model, distilled in a domain that fits it, sealed as a
frame, with what a frame may carry at its most (four tags, two parents, a head, an action). Beside
it what the model's gradient or weights take as float32, which is what a round of federated
averaging sends, once up and once down. Models: the shipped ones, the health example's, and
random perceptrons up to a million weights. Then what travels between gateways.

--check exits 1 when two models give frames of different size, or one above 512 bytes.
"""

import argparse
import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "host")]

from _recall_costs import sizes  # noqa: E402

from edge_agent import frame  # noqa: E402
from edge_agent.cpython.model_litert import LiteModel  # noqa: E402
from edge_agent.cpython.signer import HostCrypto  # noqa: E402
from edge_agent.domain import Domain, Features, VectorSpace, make_domain  # noqa: E402
from edge_agent.outcome import Outcome, distil  # noqa: E402
from edge_agent.tools.tap import tap  # noqa: E402
from models.mlp import Net  # noqa: E402
from models.tflite_writer import Quantiser, write_mlp  # noqa: E402
from mpy_port.tflite.flatbuffer import Graph  # noqa: E402

CRYPTO = HostCrypto()
CEILING = 512
WIDTHS = ((16,), (64, 64), (256, 256), (700, 700, 700))
QUICK = WIDTHS[:3]


def perceptron(hidden: "tuple[int, ...]") -> bytes:
    rng = np.random.default_rng(1)
    layers = (48, *hidden, 20)
    weights = [rng.normal(0, 0.1, (b, a)).astype(np.float32) for a, b in pairwise(layers)]
    net = Net(weights, [np.zeros(len(w), np.float32) for w in weights])
    inputs = rng.normal(0, 1, (50, 48)).astype(np.float32)
    return write_mlp(net, inputs, Quantiser(1 / 32, 0), "random weights")


def parameters(data: bytes) -> int:
    """Weights and biases in the file: constant tensors."""
    graph = Graph(data)
    count = 0
    for op in graph.operators:
        for index in op.inputs[1:]:
            tensor = graph.tensor(index) if index >= 0 else None
            if tensor is not None and tensor.data is not None:
                count += int(np.prod(tensor.shape))
    return count


def frames_of(data: bytes, where: str) -> "dict[str, Any]":
    model = LiteModel(data, where, trusted=True)
    labels = [f"label {i}" for i in range(model.labels)]
    tags = [f"tag {i}" for i in range(4)]
    # Only the width matters here: the features are made up.
    features = Features("raw", 1, model.input_length, 1, (0,), (1,), 1)
    space = VectorSpace(model.embedding_length, model.sha256, 127, 8, features)
    seed = bytes(32)
    file = make_domain(
        CRYPTO, seed, CRYPTO.public_key(seed), "packets", 1, space, labels, tags, ["none"]
    )
    domain = Domain.load(file, CRYPTO)
    inputs = np.random.default_rng(2).integers(-128, 128, model.input_length).astype(np.int8)
    made = distil(model.run(inputs.tobytes()), domain, model.model_id)
    assert made.vector is not None
    keys = frame.DeviceKeys(CRYPTO, b"\x0a" * 8, bytes(32), 1)
    full = Outcome(
        made.vector, made.label, made.confidence, (0, 1, 2, 3), 0, None,
        (bytes(16), b"\1" * 16), 3, 65_000, None, made.model,
    )  # fmt: skip

    def size(outcome: Outcome, **how: Any) -> int:
        print_ = domain.fingerprint(outcome.vector or b"")
        record = frame.OutcomeRecord(
            b"jrnl", 3_000_000_000, 70_000, 1 << 40, 1_800_000_000, domain.id, outcome, print_
        )
        return len(frame.seal(keys, record, **how))

    count = parameters(data)
    return {
        "model": where,
        "file": len(data),
        "parameters": count,
        "float32": 4 * count,
        "frame": size(made),
        "full frame": size(full),
        "encrypted": size(full, encrypt=True),
        "padded": size(full, pad=CEILING),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="without the largest model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 when sizes differ")
    options = parser.parse_args()
    files = {
        "health": (ROOT / "examples/health/health.tflite").read_bytes(),
        "watch perceptron": (ROOT / "models/watch_mlp_int8.tflite").read_bytes(),
        "watch convolutional": tap((ROOT / "models/watch_cnn_int8.tflite").read_bytes()),
    }
    for hidden in QUICK if options.quick else WIDTHS:
        files["perceptron " + "-".join(map(str, (48, *hidden, 20)))] = perceptron(hidden)
    rows = [frames_of(data, name) for name, data in files.items()]
    rows.sort(key=lambda row: row["parameters"])
    print(f"{'':28} {'parameters':>10} {'float32':>11} {'frame':>6} {'full':>5} {'encrypted':>10}")
    for row in rows:
        print(
            f"{row['model']:28} {row['parameters']:10,} {row['float32']:11,} {row['frame']:6} "
            f"{row['full frame']:5} {row['encrypted']:10}"
        )
    between = sizes()
    print("between gateways: " + ", ".join(f"{name} {n}" for name, n in between.items()))
    missed = []
    for what in ("frame", "full frame", "encrypted", "padded"):
        found = {row[what] for row in rows}
        # A label or confidence above 23 takes one byte more: content, not the model's size.
        if max(found) - min(found) > 2:
            missed.append(f"{what}: sizes {sorted(found)}")
        if max(found) > CEILING:
            missed.append(f"{what}: {max(found)} bytes")
    if options.json:
        result = {"models": rows, "between gateways": between, "ceiling": CEILING}
        options.json.write_text(json.dumps(result | {"missed": missed}, indent=1) + "\n")
    for line in missed:
        print("MISSED " + line)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
