"""Sites for tests of learning: people 4-10 as the shipped model sees them.

A site is a person: what the left arm did is what its device has lived through, the right arm is
what comes after. Vectors come from the shipped model by way of this project's own runtime.
"""

import functools
from pathlib import Path

import numpy as np

from edge_agent.cpython.model_own import OwnModel
from edge_agent.cpython.sensors.replay import ReplayFile
from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain
from edge_agent.features import Features
from gateway import heads
from gateway.base_head import base_of

MODELS = Path(__file__).resolve().parents[2] / "models"
MLP = MODELS / "watch_mlp_int8.tflite"
SITES = range(4, 11)
LABELS = 7


@functools.cache
def domain():
    return Domain.load((MODELS / "watch.domain").read_bytes(), HostCrypto())


@functools.cache
def base():
    return base_of(MLP.read_bytes(), domain())


@functools.cache
def lived(step=2):
    """person, side -> (vectors, true labels, what the model said), of every step-th window."""
    model, file = (
        OwnModel(MLP.read_bytes(), "shipped"),
        ReplayFile(MODELS / "data/watch_replay.bin"),
    )
    features = Features(domain().features)
    found = {}
    for recording in file.recordings:
        rows = found.setdefault((recording.person, recording.side), ([], [], []))
        for n in range(0, file.windows(recording, 128, 64), step):
            output = model.run(features.apply(file.read(recording, n * 64, 128)))
            rows[0].append(domain().vector(output.embedding, output.zero_point))
            rows[1].append(recording.label)
            rows[2].append(max(range(LABELS), key=lambda i: output.scores[i]))
    return {
        key: (np.frombuffer(b"".join(v), np.int8).reshape(-1, 64), np.array(y), np.array(said))
        for key, (v, y, said) in found.items()
    }


def left(person, weight=4.0):
    """What a site has lived through, confirmed."""
    vectors, truth, said = lived()[person, 0]
    return heads.evidence(vectors, truth, weight, 0, said)


def right(person):
    return lived()[person, 1]


def of_others(person, weight=2.0, claim=lambda origin, truth: truth):
    """Everything that the other six lived through. claim: what an origin says of its labels."""
    parts = []
    for other in SITES:
        if other != person:
            vectors, truth, _ = lived()[other, 0]
            parts.append(heads.evidence(vectors, claim(other, truth), weight, other))
    return heads.join(*parts)


def near_of_others(person, per_label=14, weight=2.0, claim=lambda origin, truth: truth):
    """Of these the nearest within each label to anything lived through here."""
    rows = of_others(person, weight, claim)
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (
        left(person).vectors.astype(float), rows.vectors.astype(float)
    ))  # fmt: skip
    alike = (y @ x.T).max(1)
    chosen = []
    for label in range(LABELS):
        mine = np.flatnonzero(rows.labels == label)
        chosen += mine[np.argsort(-alike[mine], kind="stable")[:per_label]].tolist()
    return rows.take(np.array(chosen))
