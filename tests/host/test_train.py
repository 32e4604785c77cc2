"""The data, the training, the shipped files and their provenance."""

import hashlib
import io
import json
import pickle
import sys
from array import array
from pathlib import Path

import numpy as np
import pytest
import tflite_kit as kit

from edge_agent.cpython.sensors.replay import ReplayFile
from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain
from edge_agent.features import Features
from models import make_domain, train, watch_data, windows

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
sys.path.insert(0, str(ROOT / "tests" / "core"))


@pytest.fixture(scope="module")
def recordings():
    return watch_data.load()


@pytest.fixture(scope="module")
def domain():
    return Domain.load((MODELS / "watch.domain").read_bytes(), HostCrypto())


def shipped():
    p = json.loads((MODELS / "watch_features.json").read_text())
    return train.Trained(
        (MODELS / "watch_mlp_int8.tflite").read_bytes(),
        p["offset"],
        p["mul"],
        p["shift"],
        0.0,
        None,
    )


def structure(tflite):
    model = kit.parse(tflite)
    graph = model.subgraphs[0]
    tensors = [(t.name, tuple(t.shape), t.type) for t in graph.tensors]
    return tensors, [
        (op.opcodeIndex, tuple(op.inputs), tuple(op.outputs)) for op in graph.operators
    ]


# ---- data


def test_recordings(recordings):
    assert len(recordings) == 140
    assert {r.person for r in recordings} == set(range(1, 11))
    assert sum(len(r.samples) for r in recordings) == 244102
    assert len(windows.cut(recordings)[1]) == 3605
    # gravity: at rest 1 g is 4096 counts
    total = np.concatenate([r.samples[:, :3] for r in recordings]).astype(float)
    assert 3900 < np.sqrt((total**2).sum(1)).mean() < 4700


def test_replay_file_is_made_of_the_data(recordings):
    tests = train.people(recordings, train.REPLAY_PEOPLE)
    assert watch_data.replay_bytes(tests) == (MODELS / "data" / "watch_replay.bin").read_bytes()
    file = ReplayFile(MODELS / "data" / "watch_replay.bin")
    assert (file.axes, file.rate_hz, len(file.recordings)) == (6, 50, 98)
    assert {r.person for r in file.recordings} == set(range(4, 11))
    for ours, theirs in zip(tests[::17], file.recordings[::17], strict=True):
        assert ours[:3] == (theirs.person, theirs.side, theirs.label)
        assert file.read(theirs, 100, 7).tolist() == ours.samples[100:107].ravel().tolist()


def test_another_wheel_is_refused(tmp_path):
    path = tmp_path / watch_data.WHEEL
    path.write_bytes(b"PK")
    with pytest.raises(SystemExit, match="SHA-256"):
        watch_data.fetch(path)
    with pytest.raises(SystemExit, match="no such file"):
        watch_data.fetch(tmp_path / "none.whl")


def test_the_unpickler_knows_arrays_only():
    for harmful in (eval, Path("x"), pickle.Unpickler):
        with pytest.raises(pickle.UnpicklingError):
            watch_data._NumpyOnly(io.BytesIO(pickle.dumps(harmful))).load()


# ---- features


def test_numpy_and_plain_features_are_the_same_bits(recordings, domain):
    plain = Features(domain.features)
    rng = np.random.default_rng(0)
    real = windows.cut(recordings)[0][::90]
    random = rng.integers(-32768, 32768, (20, 128, 6))
    flat = np.full((1, 128, 6), -32768)
    spec = domain.features
    for some in (real, random, flat):
        fast = windows.to_int8(
            windows.stats8(some), np.array(spec.offset), np.array(spec.mul), spec.shift
        )
        slow = [plain.apply(array("h", w.ravel().tolist())) for w in some]
        assert fast.tobytes() == b"".join(slow)


def test_golden_features_agree_with_numpy():
    import test_features as core

    samples = np.array(core.noise(768, 1, 20000)).reshape(1, 128, 6)
    offset = np.array([(i * 97) % 301 - 150 for i in range(48)])
    mul = np.array([(i * 31) % 200 + 3 for i in range(48)])
    got = windows.to_int8(windows.stats8(samples), offset, mul, 14)
    assert got.tobytes().hex() == core.GOLDEN
    samples = np.array(core.noise(24, 3, 30000)).reshape(8, 3)
    got = windows.to_int8(samples, np.array([5, -5, 0]), np.array([7, 9, 11]), 12)
    assert got.tobytes().hex() == core.GOLDEN_RAW


def test_rotations_turn_and_keep_lengths():
    turn = windows.rotations(np.array([[0, 0, np.pi / 2], [0.3, -0.2, 0.9]]))
    assert np.allclose(turn[0] @ [1, 0, 0], [0, 1, 0])
    assert np.allclose(turn[1] @ turn[1].T, np.eye(3))


# ---- training


def test_shipped_model_is_accurate_on_people_it_never_saw(recordings):
    overall, each = train.accuracy(shipped(), train.people(recordings, train.REPLAY_PEOPLE))
    noted = json.loads((MODELS / "provenance.json").read_text())["watch_mlp_int8.tflite"]
    assert overall >= 0.77
    assert overall == pytest.approx(noted["accuracy int8, people 4-10"], abs=1e-4)
    assert each == {int(k): v for k, v in noted["accuracy int8 by person"].items()}


def retrain(which):
    """In a process of its own, because it wants numpy with one thread."""
    result = kit.here("from models.train import main; raise SystemExit(main())", "--check", which)
    assert result.returncode == 0, (result.stdout[:500], result.stderr[-2000:])
    return json.loads(result.stdout)


def test_retraining_on_people_1_to_3_reaches_the_same():
    result = retrain("shipped")
    assert result["int8"] >= 0.77
    assert abs(result["int8"] - result["float"]) < 0.01
    # Not the same bytes on every CPU: only the structure must be the same.
    assert structure(bytes.fromhex(result["tflite"])) == structure(shipped().tflite)


def test_training_on_people_1_to_7_is_accurate_on_8_to_10():
    assert retrain("seven")["int8"] >= 0.83


# ---- shipped files


def test_provenance_names_the_files_as_they_are():
    noted = json.loads((MODELS / "provenance.json").read_text())
    assert {"data/watch_replay.bin", "watch_mlp_int8.tflite", "watch_cnn_int8.tflite"} <= set(noted)
    for name, entry in noted.items():
        data = (MODELS / name).read_bytes()
        assert entry["bytes"] == len(data), name
        assert entry["sha256"] == hashlib.sha256(data).hexdigest(), name
        assert watch_data.WHEEL_SHA256 in entry["source"]


def test_no_pickle_and_no_key_is_shipped():
    tracked = [p for p in MODELS.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert not [p for p in tracked if p.suffix in (".npy", ".npz", ".pkl", ".pickle")]
    assert "*.key" in (ROOT / ".gitignore").read_text().split()
    assert "David M. Burns" in (MODELS / "data" / "NOTICE-watch-data.txt").read_text()


def test_domain_belongs_to_the_model(domain):
    assert domain.space.encoder == hashlib.sha256(shipped().tflite).digest()
    assert list(domain.features.offset) == shipped().offset
    assert list(domain.features.mul) == shipped().mul
    assert len(domain.labels) == 7 and "unsure" in domain.tags
    assert domain.results == ("unknown", "confirmed", "corrected")
    assert make_domain.space(MODELS) == domain.space


@pytest.fixture
def copy(tmp_path):
    for name in ("watch_mlp_int8.tflite", "watch_features.json", "watch.domain"):
        (tmp_path / name).write_bytes((MODELS / name).read_bytes())
    return tmp_path


def test_domain_that_fits_needs_no_key(copy):
    before = (copy / "watch.domain").read_bytes()
    assert make_domain.update(copy, copy / "none.key") == 0
    assert (copy / "watch.domain").read_bytes() == before


def test_another_model_needs_the_owner_s_key(copy, capsys):
    with (copy / "watch_mlp_int8.tflite").open("ab") as f:
        f.write(b"\0")
    before = (copy / "watch.domain").read_bytes()
    assert make_domain.update(copy, copy / "none.key") == 3
    assert "--new-owner" in capsys.readouterr().err
    assert (copy / "watch.domain").read_bytes() == before


def test_a_model_that_cannot_be_signed_is_not_written(copy):
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    files = {
        "watch_mlp_int8.tflite": b"other",
        "watch_features.json": before["watch_features.json"],
    }
    assert train.write(copy, files, copy / "none.key", False) == 3
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before


@pytest.mark.parametrize(("text", "mode"), [("ab" * 32, 0o644), ("ab" * 31, 0o600), ("", 0o600)])
def test_bad_keys_are_refused(copy, text, mode):
    (copy / "watch.domain").unlink()
    key = copy / "owner.key"
    key.write_text(text)
    key.chmod(mode)
    assert make_domain.update(copy, key) == 3
    assert not (copy / "watch.domain").exists()


def test_new_owner_makes_another_domain_and_signing_is_reproducible(copy, domain):
    key = copy / "owner.key"
    assert make_domain.update(copy, key, new_owner=True) == 0
    assert key.stat().st_mode & 0o777 == 0o600
    first = (copy / "watch.domain").read_bytes()
    other = Domain.load(first, HostCrypto())
    assert other.id != domain.id and other.space == domain.space
    (copy / "watch.domain").unlink()
    assert make_domain.update(copy, key) == 0
    assert (copy / "watch.domain").read_bytes() == first
    assert make_domain.update(copy, key, new_owner=True) == 3  # never overwrites a key
