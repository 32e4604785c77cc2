"""The signed codebook of the watch exercises: how gateways find similar outcomes.

    python -m models.make_codebook [--wheel PATH] [--owner-key FILE] [--kind KIND] [--out DIR]

Trained on what the shipped encoder makes of people 1-3, the people it was trained on itself:
public data, and nobody's outcomes. Their windows are varied (turned, faster, more vigorous)
more than for training the encoder, because a codebook meets people it has not seen: with 60,000
variants the cells fit people 4-10 better than with the windows as they are (see DESIGN.md).

The domain's owner signs; the key is not in the repository. Same key, same machine: same file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

# As in train.py: before numpy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt

from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain
from edge_agent.errors import EdgeError
from gateway.codebook import Codebook
from gateway.domain_file import load_owner
from gateway.sketch import KINDS
from gateway.train import train
from models import watch_data
from models.reference import run_int8
from models.watch_data import Recording
from models.windows import HOP, augmented, stats8, to_int8

HERE = Path(__file__).resolve().parent
PEOPLE = (1, 2, 3)
COUNT = 60_000
SEED = 5
# Standard deviations (speed: half width) of how windows are varied; see windows.augmented.
ROTATION, SPEED, VIGOUR = 0.2, 0.25, 0.2

Int8 = npt.NDArray[np.int8]


def outcomes(
    recordings: list[Recording],
    count: int,
    seed: int,
    variation: tuple[float, float, float] = (ROTATION, SPEED, VIGOUR),
    where: Path = HERE,
) -> tuple[Int8, npt.NDArray[np.int64]]:
    """(vectors (count, 64), labels as the encoder sees them) of varied windows."""
    rng = np.random.default_rng(seed)
    ordinary = sum(len(r.samples) // HOP for r in recordings)
    # A few more than wanted: each recording rounds its share.
    windows, _ = augmented(recordings, rng, count / ordinary * 1.15, *variation)
    if len(windows) < count:
        raise ValueError(f"{len(windows)} windows, {count} wanted")
    windows = windows[rng.permutation(len(windows))[:count]]
    p = json.loads((where / "watch_features.json").read_text())
    inputs = to_int8(stats8(windows), np.array(p["offset"]), np.array(p["mul"]), p["shift"])
    return encode(inputs, where)


def encode(inputs: Int8, where: Path = HERE) -> tuple[Int8, npt.NDArray[np.int64]]:
    """What a device makes of int8 features: (vectors, most probable label)."""
    space = Domain.load((where / "watch.domain").read_bytes(), HostCrypto()).space
    found = run_int8((where / "watch_mlp_int8.tflite").read_bytes(), inputs)
    return found.vectors(space.multiplier, space.shift), found.probabilities.argmax(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--wheel", type=Path, help="a copy of the data package")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--owner-key", type=Path, help="default: owner.key beside this script")
    parser.add_argument("--kind", choices=sorted(KINDS), default="int4x64")
    parser.add_argument("--version", type=int, default=1)
    o = parser.parse_args()
    name = "watch.codebook" if o.kind == "int4x64" else f"watch-{o.kind}.codebook"
    crypto = HostCrypto()
    domain = Domain.load((HERE / "watch.domain").read_bytes(), crypto)
    try:
        key = load_owner(o.owner_key or HERE / "owner.key")
        people = [r for r in watch_data.load(o.wheel) if r.person in PEOPLE]
        vectors, _ = outcomes(people, COUNT, SEED)
        note = f"watch data of people {PEOPLE[0]}-{PEOPLE[-1]}, {COUNT} varied windows, seed {SEED}"
        data = train(domain, vectors, key, KINDS[o.kind], o.version, note)
    except EdgeError as error:
        print(f"{error}\nThe domain's owner signs its codebooks", file=sys.stderr)
        return 3
    (o.out / name).write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    provenance = o.out / "provenance.json"
    known = json.loads(provenance.read_text()) if provenance.exists() else {}
    known[name] = {
        "bytes": len(data),
        "made by": "models/make_codebook.py",
        "seed": SEED,
        "sha256": sha256,
        "source": f"{watch_data.PACKAGE}, wheel sha256 {watch_data.WHEEL_SHA256}",
        "trained on people": list(PEOPLE),
        "vectors": COUNT,
    }
    provenance.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
    print(f"{name}: {len(data)} bytes, sha256 {sha256}")
    print(Codebook.load(data, crypto, domain))
    return 0


if __name__ == "__main__":
    sys.exit(main())
