"""Loading, running, tapping models, on both runtimes; and what happens with bad files."""

import random

import numpy as np
import pytest
import tflite_kit as kit

from edge_agent.cpython import runtime
from edge_agent.cpython.model_litert import LiteModel, load_model
from edge_agent.cpython.sensors.replay import ReplayFile, label_of, window_key
from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain, VectorSpace
from edge_agent.errors import ModelError
from edge_agent.features import Features
from edge_agent.tools.infer import InputError, infer
from edge_agent.tools.tap import tap, tap_file


@pytest.fixture(scope="module")
def domain():
    return Domain.load((kit.ROOT / "models" / "watch.domain").read_bytes(), HostCrypto())


@pytest.fixture(scope="module")
def windows(domain):
    """(features, labels): every fifth window of the replay file."""
    file = ReplayFile(kit.ROOT / "models" / "data" / "watch_replay.bin")
    features = Features(domain.features)
    rows, labels = [], []
    for recording in file.recordings:
        for n in range(0, file.windows(recording, 128, 64), 5):
            rows.append(features.apply(file.read(recording, n * 64, 128)))
            labels.append(label_of(window_key(recording, n)))
    return np.frombuffer(b"".join(rows), np.int8).reshape(-1, 48), np.array(labels)


def write(tmp_path, data, name="m.tflite"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def run_all(model, rows):
    outputs = [model.run(bytes(row.tobytes())) for row in rows]
    scores = np.array([list(o.scores) for o in outputs])
    embedding = np.array([np.frombuffer(o.embedding, np.int8) for o in outputs])
    return scores, embedding, outputs[0].zero_point


# ---- the adapter


def test_shipped_model_labels_real_windows(domain, windows):
    rows, labels = windows
    model = load_model(kit.MLP, domain=domain)
    assert (model.input_length, model.labels, model.embedding_length) == (48, 7, 64)
    assert (model.runtime, model.kernels) == ("litert", "reference")
    assert model.model_id == domain.space.encoder[:8]
    scores, embedding, zero_point = run_all(model, rows)
    assert np.mean(scores.argmax(1) == labels) > 0.7
    assert zero_point == -128 and embedding.min() == -128  # after a ReLU, zero is common
    assert np.all(abs(scores.sum(1) - 256) <= 7)


def test_outputs_are_those_of_the_runtime(windows):
    rows = windows[0][:50]
    model = load_model(kit.MLP)
    interpreter = runtime.make_interpreter(
        kit.MLP.read_bytes(), runtime.find_runtime("litert"), "reference"
    )
    call = interpreter.get_signature_runner()
    scores, embedding, _ = run_all(model, rows)
    for i, row in enumerate(rows):
        raw = call(features=row[None])
        assert np.array_equal(raw["probabilities"][0].astype(int) + 128, scores[i])
        assert np.array_equal(raw["embedding"][0], embedding[i])


def test_fast_kernels_differ_by_one_step_at_most(windows):
    rows = windows[0]
    plain = run_all(load_model(kit.MLP, kernels="reference"), rows)
    fast = run_all(load_model(kit.MLP, kernels="fast"), rows)
    assert np.abs(plain[0] - fast[0]).max() <= 1
    assert np.abs(plain[1].astype(int) - fast[1]).max() <= 1


def test_outputs_are_found_by_name_in_any_order(tmp_path, windows):
    rows = windows[0][:20]
    swapped = kit.with_outputs(kit.MLP.read_bytes(), "embedding", "probabilities")
    a = run_all(load_model(kit.MLP), rows)
    b = run_all(load_model(write(tmp_path, swapped)), rows)
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])


def test_uint8_model_gives_the_same(tmp_path, windows):
    rows = windows[0][:100]
    path = write(tmp_path, tap(kit.unsigned(kit.MLP.read_bytes())))
    a = run_all(load_model(kit.MLP), rows)
    b = run_all(load_model(path), rows)
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) and a[2] == b[2]


def test_float_model(tmp_path):
    data, weights, biases = kit.float_mlp()
    path = write(tmp_path, data)
    rows = np.random.default_rng(2).integers(-128, 128, (50, 6)).astype(np.int8)
    model = load_model(path, input_scale=1 / 64, embedding_scale=0.1)
    scores, embedding, zero_point = run_all(model, rows)
    p, h = kit.float_forward(weights, biases, rows / 64)
    assert zero_point == 0
    assert np.abs(scores - np.clip(np.floor(p * 256 + 0.5), 0, 255)).max() <= 1
    assert np.abs(embedding - np.clip(np.floor(h / 0.1 + 0.5), -128, 127)).max() <= 1


def test_float_model_needs_its_scales(tmp_path):
    path = write(tmp_path, kit.float_mlp()[0])
    with pytest.raises(ModelError, match="no input_scale"):
        load_model(path)
    with pytest.raises(ModelError, match="no embedding_scale"):
        load_model(path, input_scale=1.0)


def test_float_output_that_is_no_probability(tmp_path):
    path = write(tmp_path, kit.float_mlp(softmax=False)[0])
    model = load_model(path, input_scale=1.0, embedding_scale=1.0)
    with pytest.raises(ModelError, match="SOFTMAX"):
        model.run(bytes([100] * 6))


# ---- refusals


def test_logits_are_no_probabilities(tmp_path):
    data = kit.parse(kit.MLP.read_bytes())
    graph = data.subgraphs[0]
    names = [t.name.decode() for t in graph.tensors]
    graph.outputs = [names.index("logits"), names.index("embedding")]
    graph.tensors[names.index("probabilities")].name = "gone"
    graph.tensors[names.index("logits")].name = "probabilities"
    data.signatureDefs = []
    with pytest.raises(ModelError, match="holds no probabilities"):
        load_model(write(tmp_path, kit.pack(data)))


def test_classifier_without_embedding_says_how_to_add_one(tmp_path):
    with pytest.raises(ModelError, match="edge-agent model tap"):
        load_model(write(tmp_path, kit.single_output(kit.MLP.read_bytes())))
    with pytest.raises(ModelError, match="edge-agent model tap"):
        load_model(kit.CNN)


def test_outputs_that_cannot_be_told_apart(tmp_path):
    data = kit.with_outputs(kit.MLP.read_bytes(), "probabilities", "hidden")
    with pytest.raises(ModelError, match="cannot tell"):
        load_model(write(tmp_path, data))


def test_another_model_than_the_domain_names(tmp_path, domain):
    data = kit.with_outputs(kit.MLP.read_bytes(), "probabilities", "embedding")
    with pytest.raises(ModelError, match="is not the encoder of domain watch-exercises"):
        load_model(write(tmp_path, data), domain=domain)


def with_space(domain, **changes):
    space = domain.space._replace(encoder="any", **changes)
    assert isinstance(space, VectorSpace)
    return Domain(HostCrypto(), "other", b"k" * 32, 1, space, domain.labels, [], [], [])


@pytest.mark.parametrize("runtime", ["litert", "own"])
def test_a_feature_profile_takes_any_model(domain, windows, runtime):
    """The embedding is what goes in; the model's own, of another width, is not asked."""
    rows, _ = windows
    profile = with_space(domain, dim=48)
    profile.space = profile.space._replace(encoder="features")
    model = load_model(kit.MLP, runtime, domain=profile)
    plain = load_model(kit.MLP, runtime, domain=domain)
    features = bytes(rows[0].tobytes())
    output = model.run(features)
    assert (output.embedding, output.zero_point) == (features, 0)
    assert output.scores == plain.run(features).scores
    profile.space = profile.space._replace(dim=64)
    with pytest.raises(ModelError, match="embedding has 48 values, domain other wants 64"):
        load_model(kit.MLP, runtime, domain=profile)


def test_shapes_that_do_not_fit_the_domain(domain):
    with pytest.raises(ModelError, match="embedding has 64 values, domain other wants 32"):
        load_model(kit.MLP, domain=with_space(domain, dim=32))
    raw = domain.features._replace(kind="raw", offset=(0,) * 6, mul=(1,) * 6)
    with pytest.raises(ModelError, match="input has 48 values, domain other wants 768"):
        load_model(kit.MLP, domain=with_space(domain, features=raw))
    few = with_space(domain)
    few.labels = few.labels[:3]
    with pytest.raises(ModelError, match="7 scores, domain other has 3 labels"):
        load_model(kit.MLP, domain=few)


def test_wrong_number_of_features():
    with pytest.raises(ModelError, match="47 features"):
        load_model(kit.MLP).run(bytes(47))


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"PK\3\4" + b"x" * 5000, b"\x1c\0\0\0TFL3"])
def test_files_that_are_no_model(tmp_path, content):
    with pytest.raises(ModelError):
        load_model(write(tmp_path, content))


def test_missing_file():
    with pytest.raises(ModelError, match="No such file"):
        load_model("/nowhere/m.tflite")


def test_damaged_models_never_take_the_process_down(tmp_path):
    """Each either is refused or still runs; a crash would end this test run."""
    data = kit.MLP.read_bytes()
    rng = random.Random(5)
    refused = 0
    for i in range(12):
        bad = bytearray(data)
        if i % 3 == 0:
            del bad[rng.randrange(20, len(bad)) :]
        else:
            for _ in range(4):
                at = rng.choice((rng.randrange(1500), len(bad) - rng.randrange(1, 2500))) & ~3
                bad[at : at + 4] = rng.choice(
                    (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\0")
                )
        try:
            load_model(write(tmp_path, bytes(bad))).run(bytes(48))
        except ModelError:
            refused += 1
    assert refused >= 4


def test_crash_of_the_runtime_becomes_an_error(tmp_path):
    """tflite-runtime really dies of a truncated file; the trial run keeps that away."""
    path = write(tmp_path, kit.MLP.read_bytes()[:5000])
    said = kit.in_other_runtime(
        "import sys\n"
        "from edge_agent.cpython.model_litert import load_model\n"
        "from edge_agent.errors import ModelError\n"
        "try: load_model(sys.argv[1])\n"
        "except ModelError as error: print(error)",
        path,
    )
    assert "crashes the runtime" in said


WITHOUT_LITE = (
    "import sys\n"
    "sys.modules['ai_edge_litert'] = None\n"
    "sys.modules['tflite_runtime'] = None\n"
    "from edge_agent.cpython.model_litert import LiteModel, load_model\n"
)


def test_own_runtime_where_there_is_no_other():
    said = kit.here(WITHOUT_LITE + "print(load_model(sys.argv[1]).runtime)", kit.MLP)
    assert said.stdout.strip() == "own", said.stderr


def test_no_runtime_for_a_float_model(tmp_path):
    path = write(tmp_path, kit.float_mlp()[0])
    said = kit.here(WITHOUT_LITE + "load_model(sys.argv[1], input_scale=1.0)", path)
    last = said.stderr.strip().splitlines()[-1]
    assert "ModelError" in last and "float32" in last and "pip install ai-edge-litert" in last
    said = kit.here(WITHOUT_LITE + "LiteModel(b'', 'm')", path)
    last = said.stderr.strip().splitlines()[-1]
    assert "ModelError" in last and "ai-edge-litert" in last and "tflite-runtime" in last


def test_runtime_that_is_not_there_or_not_known():
    with pytest.raises(ModelError, match="tflite-runtime"):
        load_model(kit.MLP, runtime="tflite-runtime")
    with pytest.raises(ModelError, match="unknown runtime"):
        load_model(kit.MLP, runtime="torch")


# ---- the other runtime


def compare(tmp_path, model, rows):
    """Raw outputs of the same rows on both runtimes."""
    np.save(tmp_path / "x.npy", rows)
    infer(model, tmp_path / "x.npy", tmp_path / "a.npy", "litert", raw=True, kernels="reference")
    kit.in_other_runtime(
        "import sys\n"
        "from edge_agent.tools.infer import infer\n"
        "s = infer(*sys.argv[1:4], raw=True, kernels='reference')\n"
        "assert s['runtime'] == 'tflite-runtime', s",
        model,
        tmp_path / "x.npy",
        tmp_path / "b.npy",
    )
    a, b = np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")
    assert a.dtype == b.dtype == np.int8 and a.shape == b.shape
    return a.astype(int), b.astype(int)


def test_both_runtimes_on_the_shipped_model(tmp_path, windows):
    # LiteRT rounds a layer's sum once, tflite-runtime twice. Measured here: 11 steps of 256.
    a, b = compare(tmp_path, kit.MLP, windows[0])
    assert np.abs(a - b).max() <= 16
    assert np.mean(a != b) < 0.05
    assert np.mean(a.argmax(1) == b.argmax(1)) > 0.99


def test_both_runtimes_on_tapped_models(tmp_path, windows):
    for name, source in (("mlp", kit.single_output(kit.MLP.read_bytes())), ("cnn", kit.CNN)):
        data = source if isinstance(source, bytes) else source.read_bytes()
        path = write(tmp_path, tap(data), name)
        width = 48 if name == "mlp" else 768
        rows = np.random.default_rng(3).integers(-60, 60, (40, width)).astype(np.int8)
        if name == "mlp":
            rows = windows[0][:40]
        here = run_all(load_model(path), rows)
        np.save(tmp_path / "rows.npy", rows)
        kit.in_other_runtime(
            "import sys, numpy as np\n"
            "from edge_agent.cpython.model_litert import load_model\n"
            "m = load_model(sys.argv[1])\n"
            "assert m.runtime == 'tflite-runtime'\n"
            "out = [m.run(r.tobytes()) for r in np.load(sys.argv[2])]\n"
            "np.save(sys.argv[3], np.array([list(o.scores) for o in out]))\n"
            "np.save(sys.argv[4], np.array([list(o.embedding) for o in out], np.uint8))",
            path,
            tmp_path / "rows.npy",
            tmp_path / "s.npy",
            tmp_path / "e.npy",
        )
        there = np.load(tmp_path / "s.npy"), np.load(tmp_path / "e.npy").view(np.int8)
        assert np.abs(here[0] - there[0]).max() <= 24
        assert np.abs(here[1].astype(int) - there[1]).max() <= 3
        assert np.mean(here[0].argmax(1) == there[0].argmax(1)) >= 0.95


# ---- tap


@pytest.mark.parametrize("which", ["mlp", "cnn", "uint8", "float"])
def test_tap_keeps_weights_and_first_output(tmp_path, which):
    data = {
        "mlp": lambda: kit.single_output(kit.MLP.read_bytes()),
        "cnn": kit.CNN.read_bytes,
        "uint8": lambda: kit.unsigned(kit.MLP.read_bytes()),
        "float": lambda: kit.float_mlp(embedding=False)[0],
    }[which]()
    tapped = tap(data)
    assert kit.buffers(tapped) == kit.buffers(data)
    assert tap(tapped) == tapped
    found = runtime.find_runtime("litert")
    old = runtime.make_interpreter(data, found, "reference")
    new = runtime.make_interpreter(tapped, found, "reference")
    assert len(new.get_output_details()) == 2
    detail = old.get_input_details()[0]
    rng = np.random.default_rng(1)
    for _ in range(20):
        x = rng.normal(0, 1, detail["shape"]).astype(np.float32)
        if detail["dtype"] is not np.float32:
            limits = np.iinfo(detail["dtype"])
            x = rng.integers(limits.min, limits.max + 1, detail["shape"]).astype(detail["dtype"])
        results = []
        for interpreter in (old, new):
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
            interpreter.invoke()
            results.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
        assert np.array_equal(*results)


def test_tapped_embedding_is_the_one_the_encoder_gives(tmp_path, windows):
    rows = windows[0][:50]
    path = write(tmp_path, tap(kit.single_output(kit.MLP.read_bytes())))
    assert np.array_equal(run_all(load_model(path), rows)[1], run_all(load_model(kit.MLP), rows)[1])


def test_tap_file_reports_and_writes(tmp_path):
    summary = tap_file(kit.CNN, tmp_path / "tapped.tflite")
    assert summary["width"] == 64 and summary["changed"] is True
    model = load_model(tmp_path / "tapped.tflite")
    assert (model.input_length, model.labels, model.embedding_length) == (768, 7, 64)
    again = tap_file(tmp_path / "tapped.tflite", tmp_path / "again.tflite")
    assert again["changed"] is False and again["sha256"] == summary["sha256"]


def test_tap_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(ModelError, match="no hidden layer"):
        tap(kit.float_mlp(sizes=(6, 3), embedding=False)[0])
    with pytest.raises(ModelError):
        tap(kit.MLP.read_bytes()[:3000])
    with pytest.raises(ModelError):
        tap(b"\x1c\0\0\0TFL3" + b"\xff" * 200)
    with pytest.raises(ModelError, match="No such file"):
        tap_file(tmp_path / "no", tmp_path / "out")


# ---- batch inference


def test_infer_quantises_and_dequantises(tmp_path, windows):
    rows = windows[0][:30]
    scale = 4 / 128
    np.save(tmp_path / "x.npy", rows.astype(np.float32) * scale)
    np.save(tmp_path / "q.npy", rows)
    summary = infer(kit.MLP, tmp_path / "x.npy", tmp_path / "y.npy")
    infer(kit.MLP, tmp_path / "q.npy", tmp_path / "r.npy", raw=True)
    real, raw = np.load(tmp_path / "y.npy"), np.load(tmp_path / "r.npy")
    assert summary["rows"] == 30 and summary["runtime"] == "litert"
    assert real.dtype == np.float32 and raw.dtype == np.int8
    assert real.shape == raw.shape == (30, 7)
    assert np.array_equal(real, (raw.astype(np.float32) + 128) / 256)
    scores = run_all(load_model(kit.MLP), rows)[0]
    assert np.array_equal(raw.astype(int) + 128, scores)


def test_infer_rounds_halves_away_from_zero_and_saturates(tmp_path, windows):
    scale = np.float32(4 / 128)
    steps = np.array([0.5, -0.5, 1.5, -1.5, 0.49, 1000, -1000, 3], np.float32)
    wanted = np.array([1, -1, 2, -2, 0, 127, -128, 3], np.int8)
    for name, row in (("x", np.resize(steps, 48) * scale), ("q", np.resize(wanted, 48))):
        np.save(tmp_path / f"{name}.npy", row[None])
    infer(kit.MLP, tmp_path / "x.npy", tmp_path / "a.npy")
    infer(kit.MLP, tmp_path / "q.npy", tmp_path / "b.npy", raw=True)
    b = np.load(tmp_path / "b.npy").astype(np.float32)
    assert np.array_equal(np.load(tmp_path / "a.npy"), (b + 128) / 256)


@pytest.mark.parametrize(
    ("shape", "out"),
    [((5, 1, 1, 128, 6), (5, 1, 7)), ((5, 1, 128, 6), (5, 7)), ((0, 1, 128, 6), (0, 7))],
)
def test_infer_shapes(tmp_path, shape, out):
    x = np.random.default_rng(1).normal(0, 1, shape)
    np.save(tmp_path / "x.npy", x)
    infer(kit.CNN, tmp_path / "x.npy", tmp_path / "y.npy", progress=True)
    y = np.load(tmp_path / "y.npy")
    assert y.shape == out and np.allclose(y.sum(-1), 1, atol=0.03)


def test_infer_float_and_uint8_models(tmp_path, windows):
    data, weights, biases = kit.float_mlp()
    x = np.random.default_rng(4).normal(0, 1, (9, 6))
    np.save(tmp_path / "x.npy", x)
    infer(write(tmp_path, data), tmp_path / "x.npy", tmp_path / "y.npy")
    assert np.allclose(
        np.load(tmp_path / "y.npy"), kit.float_forward(weights, biases, x)[0], atol=1e-5
    )
    rows = windows[0][:9]
    np.save(tmp_path / "q.npy", rows)
    np.save(tmp_path / "u.npy", (rows.astype(int) + 128).astype(np.uint8))
    unsigned = write(tmp_path, kit.unsigned(kit.MLP.read_bytes()), "u.tflite")
    infer(kit.MLP, tmp_path / "q.npy", tmp_path / "a.npy", raw=True)
    infer(unsigned, tmp_path / "u.npy", tmp_path / "b.npy", raw=True)
    a, b = np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")
    assert b.dtype == np.uint8 and np.array_equal(a.astype(int) + 128, b)


@pytest.mark.parametrize(
    ("array", "raw", "text"),
    [
        (np.zeros((3, 47), np.float32), False, "the model takes"),
        (np.zeros((3, 48), np.int8), False, "--raw"),
        (np.zeros((3, 48), np.float32), True, "float32"),
        (np.full((3, 48), np.nan), False, "row 0 is not finite"),
        (np.array(["a"]), False, "rows of numbers"),
        (np.array([{}], dtype=object), False, "numpy.save"),
    ],
)
def test_infer_refuses(tmp_path, array, raw, text):
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=text):
        infer(kit.MLP, tmp_path / "x.npy", tmp_path / "y.npy", raw=raw)
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]


def test_infer_bad_paths(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 48)))
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(InputError, match="No such file"):
        infer(kit.MLP, tmp_path / "no.npy", tmp_path / "y.npy")
    with pytest.raises(InputError, match=r"numpy\.save"):
        infer(kit.MLP, tmp_path / "text.npy", tmp_path / "y.npy")
    with pytest.raises(InputError, match="No such file"):
        infer(kit.MLP, tmp_path / "x.npy", tmp_path / "none" / "y.npy")


def test_model_object_is_reusable_without_leaking(windows):
    """Twice the same rows give the same: no state stays in the interpreter."""
    model = LiteModel(kit.MLP.read_bytes(), "m")
    a = run_all(model, windows[0][:20])
    b = run_all(model, windows[0][:20])
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
