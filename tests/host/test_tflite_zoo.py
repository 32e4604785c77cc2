"""The conformance zoo: every model, every tier, both interpreters, against golden outputs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toolchain import MICROPYTHON, need

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mpy_port.tflite import Interpreter, planner  # noqa: E402
from mpy_port.tflite.kernels import host_numpy, python  # noqa: E402
from tests.zoo import cases, contract  # noqa: E402
from tests.zoo.make_golden import digest, read_golden  # noqa: E402

GOLDEN = read_golden()
# Plain Python does these on MicroPython only: seconds each.
HEAVY = ("network_mobilenet", "network_resnet_8", "network_keyword_spotting")


@pytest.fixture(scope="session")
def zoo():
    """name -> (model, inputs of each run), all made anew from their seeds."""
    return {name: (model, feeds) for name, model, feeds in cases.everything()}


def outputs(model, feeds):
    out = b""
    for feed in feeds:
        at = 0
        for k, info in enumerate(model.inputs):
            model.set_input(feed[at : at + info.size], k)
            at += info.size
        model.invoke()
        out += b"".join(bytes(model.output(k)) for k in range(len(model.outputs)))
    return out


def wrong(zoo, names, tier):
    """Names of the models whose outputs are not the golden ones."""
    found = []
    for name in names:
        model, feeds = zoo[name]
        out = outputs(Interpreter(model, tier=tier), feeds)
        hashed, length, first = GOLDEN[name]
        if (digest(out), len(out), out[: len(first)]) != (hashed, length, first):
            found.append(name)
    return found


def test_the_zoo_is_as_large_as_it_should_be(zoo):
    assert set(zoo) == set(GOLDEN)
    assert sum(not name.startswith("network_") for name in zoo) >= 300
    assert sum(name.startswith("network_") for name in zoo) >= 10


def test_numpy_tier(zoo):
    assert wrong(zoo, zoo, "numpy") == []


def test_python_tier(zoo):
    assert wrong(zoo, [name for name in zoo if name not in HEAVY], "python") == []


def test_micropython(zoo, tmp_path):
    micropython = need(MICROPYTHON)
    for name, (model, feeds) in zoo.items():
        (tmp_path / (name + ".tflite")).write_bytes(model)
        (tmp_path / (name + ".in")).write_bytes(b"".join(feeds))
    script = ROOT / "tests" / "zoo" / "run_models.py"
    done = subprocess.run(
        [micropython, "-X", "heapsize=4M", script, tmp_path, "python"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    found = {}
    for line in done.stdout.splitlines():
        name, _, hashed, length, *_ = line.split()
        found[name] = (hashed, int(length))
    assert found == {name: (hashed, length) for name, (hashed, length, _) in GOLDEN.items()}


def test_every_call_keeps_the_kernels_contract(zoo):
    for model, _ in zoo.values():
        contract.check(Interpreter(model))


def lost_bits(mul, shift, scales, p):
    """Multipliers without their last five bits: what 26 bits of a scale would give."""
    bad = python.multipliers(mul, shift, scales, p)
    for c in range(len(mul)):
        mul[c] &= ~31
    return bad


def rounded_once(x, m, shift):
    total = 31 - np.asarray(shift)
    return (x * np.asarray(m, np.int64) + (1 << (total - 1))) >> total


def padded_with_zeros(x, p, fill):
    return windows(x, p, 0)


windows = host_numpy._windows


@pytest.mark.parametrize(
    ("name", "mistake", "models"),
    [
        ("multipliers", lost_bits, "exact_"),
        ("_scaled", rounded_once, "network_"),
        ("_windows", padded_with_zeros, "conv_three"),
    ],
)
def test_small_mistakes_show(zoo, monkeypatch, name, mistake, models):
    """The comparison could pass by being blunt."""
    monkeypatch.setattr(host_numpy, name, mistake, raising=False)
    assert wrong(zoo, [m for m in zoo if m.startswith(models)], "numpy")


def test_offline_plan_reaches_the_lower_bound(zoo):
    model, feeds = zoo["network_mobilenet"]
    plan, total, greedy, bound = planner.make_plan(model)
    assert (total, bound) == (55_296, 55_296)
    assert greedy > total
    loaded = Interpreter(model, plan=plan)
    assert loaded.arena_bytes == 55_296
    assert digest(outputs(loaded, feeds)) == GOLDEN["network_mobilenet"][0]


def test_every_network_can_be_planned(zoo):
    for name, (model, _) in zoo.items():
        if name.startswith("network_"):
            _, total, greedy, bound = planner.make_plan(model, tries=4000)
            assert bound <= total <= greedy, name
            assert total == bound, name


def test_plan_beside_the_model_is_found(zoo, tmp_path):
    model, feeds = zoo["network_mobilenet"]
    path = tmp_path / "mobilenet.tflite"
    path.write_bytes(model)
    assert not Interpreter(path).planned
    (tmp_path / "mobilenet.tflite.plan").write_bytes(planner.make_plan(model)[0])
    loaded = Interpreter(str(path))
    assert (loaded.planned, loaded.arena_bytes) == (True, 55_296)


def test_too_little_heap_is_a_model_error(zoo, tmp_path):
    """From heaps that hold the file and little more to one that is enough."""
    micropython = need(MICROPYTHON)
    model, feeds = zoo["network_mobilenet"]
    (tmp_path / "mobilenet.tflite").write_bytes(model)
    (tmp_path / "mobilenet.in").write_bytes(b"".join(feeds[:1]))
    script = ROOT / "tests" / "zoo" / "run_models.py"
    said = []
    for kilobytes in (360, 390, 420, 450, 480, 1000):
        heap = "heapsize=%dk" % kilobytes
        done = subprocess.run(
            [micropython, "-X", heap, script, tmp_path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, heap + done.stdout[-2000:] + done.stderr
        said.append(done.stdout)
    assert "does not fit the heap" in said[0]
    assert any("too little heap" in text for text in said)
    assert "error" not in said[-1]
