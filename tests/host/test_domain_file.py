"""`edge-gateway domain init`, and a domain made of labelled lines."""

import asyncio
import json
import random
from array import array
from pathlib import Path

import numpy as np
import pytest

from edge_agent.cpython.model_litert import load_model
from edge_agent.cpython.sensors import open_sensor
from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain
from edge_agent.errors import ConfigError
from edge_agent.features import Features
from edge_agent.outcome import distil
from gateway.cli import main
from gateway.codebook import Codebook
from gateway.domain_file import make, replace
from models import new_domain

ROOT = Path(__file__).resolve().parents[2]
HEALTH = ROOT / "examples" / "health"
SEED = bytes(range(32))
SPACE = {
    "encoder": "features",
    "dim": 3,
    "multiplier": 1,
    "shift": 1,
    "features": {
        "kind": "raw", "axes": 3, "window": 1, "hop": 1,
        "offset": [0] * 3, "mul": [1] * 3, "shift": 1,
    },
}  # fmt: skip
FAN = {"name": "fan", "labels": ["off", "on"], "space": SPACE}


def describe(folder, **changes):
    path = folder / "fan.json"
    path.write_text(json.dumps({**FAN, **changes}))
    return path


def load(path):
    return Domain.load(Path(path).read_bytes(), HostCrypto())


def test_init_makes_a_key_once_and_a_domain(tmp_path, capsys):
    description, key, out = describe(tmp_path), tmp_path / "owner.key", tmp_path / "fan.domain"
    command = ["domain", "init", str(description), "--key", str(key), "--out", str(out), "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert key.stat().st_mode & 0o777 == 0o600 and "new" in first["key"]
    domain = load(out)
    assert (domain.name, domain.labels) == ("fan", ("off", "on"))
    assert domain.tags == ("unsure", "synthesised") and "corrected" in domain.results
    assert main(command) == 0
    again = json.loads(capsys.readouterr().out)
    assert "key" not in again and again["written"].endswith("fits")
    key.chmod(0o644)
    assert main(command) == 2


def test_a_domain_is_only_replaced_by_a_later_version_of_itself(tmp_path):
    out = tmp_path / "fan.domain"
    assert replace(out, make(describe(tmp_path), SEED)) == "made"
    more = {"labels": ["off", "on", "blocked"]}
    with pytest.raises(ConfigError, match="later version"):
        replace(out, make(describe(tmp_path, **more), SEED))
    old = load(out).id
    assert replace(out, make(describe(tmp_path, version=2, **more), SEED)) == "extended"
    assert load(out).id == old and len(load(out).labels) == 3
    for other in ({"labels": ["on", "off"]}, {"name": "pump"}, {"space": {**SPACE, "shift": 2}}):
        with pytest.raises(ConfigError, match="later version"):
            replace(out, make(describe(tmp_path, version=3, **other), SEED))
    with pytest.raises(ConfigError, match="later version"):
        replace(out, make(describe(tmp_path, version=3, **more), bytes(32)))
    assert replace(out, make(describe(tmp_path, name="pump"), SEED), force=True) == "made"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lables": []}, "lables"),
        ({"labels": "off"}, "labels"),
        ({"labels": ["a", "a"]}, "twice"),
        ({"space": {**SPACE, "encoder": "none.tflite"}}, "none.tflite"),
        ({"space": {**SPACE, "encoder": "mine"}}, "encoder"),
        ({"space": {**SPACE, "dim": 1.5}}, "fan.json"),
        ({"space": {"dim": 3}}, "space"),
        ({"space": "nowhere.json"}, "nowhere.json"),
        ({"version": "2"}, "version"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        make(describe(tmp_path, **changes), SEED)


@pytest.mark.parametrize(
    ("kind", "axes", "window"), [("stats8", 3, 64), ("raw", 2, 5), ("raw", 30, 1)]
)
def test_features_are_those_of_the_agent(kind, axes, window):
    rng = np.random.default_rng(1)
    windows = rng.integers(-9000, 9000, (20, window, axes))
    _, parameters = new_domain.features_of(windows, kind)
    ours = new_domain.scaled(windows, kind, parameters)
    shape = {"kind": kind, "axes": axes, "window": window, "hop": 1, **parameters, "shift": 16}
    from edge_agent.domain import Features as Spec

    agent = Features(Spec(**{k: tuple(v) if isinstance(v, list) else v for k, v in shape.items()}))
    for window_, row in zip(windows, ours, strict=True):
        assert agent.apply(array("h", window_.reshape(-1).tolist())) == row.tobytes()


def lines(path, shift=0.0):
    random.seed(1)
    rows = ["x,y,label"]
    for label, middle in (("low", 0.0), ("high", 3.0)):
        rows += [
            f"{random.gauss(middle + shift, 1):.3f},{random.random():.3f},{label}"
            for _ in range(320)
        ]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_domain_out_of_lines(tmp_path):
    description = tmp_path / "it.json"
    training = {"kind": "raw", "window": 4, "hop": 2, "models": {"it": [8]}}
    fields = {
        "name": "it",
        "labels": ["low", "high"],
        "space": "it.space.json",
        "training": training,
    }
    description.write_text(json.dumps(fields))
    report = new_domain.build(description, [lines(tmp_path / "a.csv")], tmp_path / "k", False)
    # Windows of one label only: 159 of each.
    assert report["windows"] == 318
    domain = load(tmp_path / "it.domain")
    model = load_model(tmp_path / "it.tflite", domain=domain)
    assert domain.space.encoder == model.sha256
    Codebook.load((tmp_path / "it.codebook").read_bytes(), HostCrypto(), domain)
    # Other recordings are other features, and so another domain: nothing is replaced by half.
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match="later version"):
        new_domain.build(description, [lines(tmp_path / "b.csv", 1.0)], tmp_path / "k", False)
    (tmp_path / "b.csv").unlink()
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    vectors = new_domain.read_lines(tmp_path / "a.csv")
    assert vectors.axes == ["x", "y"]
    for text, said in (("x,y\n1,2\n", "label"), ("x,label\n1,low\nz,low\n", "number")):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(ConfigError, match=said):
            new_domain.read_lines(tmp_path / "bad.csv")


@pytest.mark.parametrize("name", ["health", "health-deep"])
def test_the_health_example_fits_together(name):
    """Both models, in the one domain, on what the clinics' devices will read."""
    domain = load(HEALTH / "health.domain")
    model = load_model(HEALTH / f"{name}.tflite", domain=domain)
    features = Features(domain.features)
    sensor_fields = json.loads((HEALTH / "health.sensor.json").read_text())
    right = total = 0
    for clinic in ("clinic-a", "clinic-b", "clinic-c"):
        path = HEALTH / f"{clinic}.csv"
        truth = new_domain.read_lines(path).labels
        sensor = open_sensor({**sensor_fields, "path": str(path)}, domain)

        async def said(sensor=sensor):
            found = []
            while (window := await sensor.read()) is not None:
                x = features.apply(window.samples)
                outcome = distil(model.run(x), domain, model.model_id)
                assert outcome.vector == domain.vector(x, 0)
                found.append(domain.labels[outcome.label])
            return found

        labels = asyncio.run(said())
        assert len(labels) == len(truth)
        right += sum(a == b for a, b in zip(labels, truth, strict=True))
        total += len(truth)
    assert right / total > 0.9
