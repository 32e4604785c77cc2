"""`edge-agent preflight` and `edge-agent model plan`: what they say, and that it is so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tflite_kit as kit
import toolchain
from test_cli_agent import agent, said

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from edge_agent.errors import ConfigError, ModelError  # noqa: E402
from edge_agent.tools.preflight import (  # noqa: E402
    LAYERS,
    find_board,
    lines,
    macs,
    make_plan,
    preflight,
    table,
)
from mpy_port.tflite import Interpreter  # noqa: E402
from tests.zoo import networks  # noqa: E402

NONE: dict = {}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Paths of some networks."""
    folder = tmp_path_factory.mktemp("zoo")
    found = {}
    for name in ("mobilenet", "keyword_spotting", "autoencoder"):
        found[name] = folder / f"{name}.tflite"
        found[name].write_bytes(networks.build(name)[0])
    return found


def test_boards_are_complete():
    boards = table("boards.json")["boards"]
    assert {"esp32", "esp32-c3", "esp32-s3", "pico", "pico2"} <= set(boards)
    for name, board in boards.items():
        assert set(board) == {
            "chip", "ram", "flash", "arch", "heap", "block", "files", "basis",
        }, name  # fmt: skip
        assert 0 < board["block"] <= board["heap"] < board["ram"], name
        assert 0 <= board["files"] < board["flash"], name
        assert len(board["basis"]) > 30, name
    assert find_board("pico")["arch"] == "armv6m"
    with pytest.raises(ConfigError, match="Known: esp32"):
        find_board("toaster")


def test_the_shipped_model_fits_everywhere():
    for board in table("boards.json")["boards"]:
        report = preflight(kit.MLP, board)
        assert report["fits"] and not report["problems"], board
        json.dumps(report)


def test_macs_are_counted_by_layer():
    net = Interpreter(kit.MLP.read_bytes(), "python")
    assert macs(net) == {
        "conv_1x1": 0, "conv": 0, "depthwise": 0, "fully_connected": 48 * 64 + 64 * 64 + 64 * 7,
    }  # fmt: skip
    model, _ = networks.build("keyword_spotting")
    found = macs(Interpreter(model, "python"))
    # 49x10 with stride 2: 25x5 positions; 10x4 first, then four pairs on 64 channels.
    assert found["conv"] == 125 * 64 * 40
    assert found["depthwise"] == 4 * 125 * 64 * 9
    assert found["conv_1x1"] == 4 * 125 * 64 * 64
    assert found["fully_connected"] == 64 * 12


def test_instructions_without_figures_are_not_measured(zoo):
    report = preflight(zoo["keyword_spotting"], "qemu-m3", instructions=NONE)
    assert report["instructions"]["estimate"] == "not measured"
    assert "armv7m" in report["instructions"]["basis"]
    assert any("not measured" in line for line in lines(report))


def test_instructions_rest_on_figures(zoo):
    figures = {
        "source": "a test",
        "per_mac": {
            "armv7m": {
                "native": {"conv_1x1": 3, "conv": 5, "depthwise": 10, "fully_connected": 4},
                "viper": {"conv_1x1": 30, "conv": 50},
            }
        },
    }
    report = preflight(zoo["keyword_spotting"], "qemu-m3", instructions=figures)
    found = report["instructions"]
    m = found["macs"]
    wanted = 3 * m["conv_1x1"] + 5 * m["conv"] + 10 * m["depthwise"] + 4 * m["fully_connected"]
    assert found["estimate"]["native"] == wanted
    assert found["estimate"]["viper"] == "not measured for depthwise, fully_connected"
    assert "a test" in found["basis"] and "softmax" in found["basis"]
    assert f"{wanted:,}" in "\n".join(lines(report))
    # Another architecture's figures are not borrowed.
    report = preflight(zoo["keyword_spotting"], "pico", instructions=figures)
    assert report["instructions"]["estimate"] == "not measured"


def test_committed_figures_have_a_source():
    known = table("footprint.json")
    assert known["source"].startswith("benchmarks/preflight.py")
    assert 10_000 < known["library"]["rom"] < known["library"]["ram"] < 100_000
    measured = table("instructions.json")  # written by benchmarks/kernels.py, if it was
    if measured:
        assert measured["source"]
        for tiers in measured["per_mac"].values():
            for costs in tiers.values():
                assert set(costs) <= set(LAYERS) and all(v > 1 for v in costs.values())


def test_a_plan_makes_the_arena_fit(zoo, tmp_path):
    """96x96 MobileNet: greedy needs more than an ESP32-C3 has in one piece, the plan does not."""
    model = tmp_path / "m.tflite"
    model.write_bytes(zoo["mobilenet"].read_bytes())
    before = preflight(model, "esp32-c3")
    assert not before["fits"]
    assert (before["arena"]["used"], before["arena"]["plan"]) == (64_512, 55_296)
    assert any("largest block" in text for text in before["problems"])
    assert any("edge-agent model plan" in text for text in before["change"])
    summary = make_plan(model)
    assert (summary["arena"], summary["greedy"], summary["bound"]) == (55_296, 64_512, 55_296)
    assert not preflight(model, "esp32-c3")["fits"]  # the heap is too small with Wi-Fi
    after = preflight(model, "esp32-c3", heap=150_000)
    assert (after["arena"]["used"], after["arena"]["source"]) == (55_296, "plan file")
    assert after["fits"] and after["verdict"].startswith("fits only with the model in flash")
    assert any("ROMFS" in text for text in after["change"])
    assert Interpreter(model).planned
    # On an ESP32 the largest piece is below what any placement needs.
    esp32 = preflight(model, "esp32")
    assert not esp32["fits"] and any("no placement" in text for text in esp32["change"])
    assert preflight(model, "esp32", heap=160_000, block=60_000)["fits"]
    # A plan of another model is refused, by name.
    (tmp_path / "m.tflite.plan").write_bytes(bytes(40))
    with pytest.raises(ModelError, match="plan"):
        preflight(model, "esp32")


def test_heap_by_place(zoo):
    report = preflight(zoo["autoencoder"], "esp32")
    heap = report["heap"]
    size = zoo["autoencoder"].stat().st_size
    assert size > heap["board"] > heap["in_flash"]
    assert heap["from_file"] - heap["in_flash"] > size
    assert report["fits"] and "ROMFS" in report["verdict"]
    assert preflight(zoo["autoencoder"], "pico2")["verdict"] == "fits"
    small = preflight(zoo["autoencoder"], "esp32", heap=40_000)
    assert not small["fits"] and any("heap of 40000" in text for text in small["problems"])


def test_estimated_heap_is_what_a_32_bit_interpreter_holds():
    toolchain.need(toolchain.MICROPYTHON32)
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/preflight.py", "--quick", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") >= 5


# ---- models that cannot run


def foreign(data, code):
    """The model with its SOFTMAX turned into another operator."""
    model = kit.parse(data)
    for entry in model.operatorCodes:
        if entry.builtinCode == kit.schema.BuiltinOperator.SOFTMAX:
            entry.builtinCode = entry.deprecatedBuiltinCode = code
    return kit.pack(model)


def test_missing_operators_are_named(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(foreign(kit.MLP.read_bytes(), kit.schema.BuiltinOperator.TANH))
    report = preflight(path, "esp32")
    assert report["missing_operators"] == ["TANH"] and not report["fits"]
    assert report["arena"]["greedy"] == 128  # known all the same
    assert "instructions" not in report
    text = "\n".join(lines(report))
    assert "missing: TANH" in text and "replace the TANH layer" in text


def test_float_models_are_explained(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(kit.float_mlp()[0])
    report = preflight(path, "esp32")
    assert not report["fits"]
    assert any("float32" in text for text in report["problems"])
    assert any("int8" in text for text in report["change"])
    assert "verdict" in "\n".join(lines(report))


def test_damaged_files_are_errors(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(kit.MLP.read_bytes()[:3000])
    with pytest.raises(ModelError, match="offset outside"):
        preflight(path, "esp32")
    with pytest.raises(ModelError, match="offset outside"):
        make_plan(path)
    assert sorted(tmp_path.iterdir()) == [path]


# ---- the command


def test_commands(zoo, tmp_path):
    model = tmp_path / "m.tflite"
    model.write_bytes(zoo["mobilenet"].read_bytes())
    report = said(agent("preflight", model, "--board", "esp32-c3", "--json"), 1)
    assert report["verdict"] == "does not fit"
    assert said(agent("model", "plan", model, "--json"))["arena"] == 55_296
    assert (tmp_path / "m.tflite.plan").stat().st_size < 1000
    shown = agent("preflight", model, "--board", "esp32-c3", "--heap", 150_000)
    assert shown.returncode == 0 and "fits only with the model in flash" in shown.stdout
    assert agent("preflight", model, "--board", "toaster").returncode == 2
    assert agent("preflight", model, "--board", "esp32", "--heap", "-4").returncode == 2
    assert agent("preflight", tmp_path / "none", "--board", "esp32").returncode == 3
    assert agent("model", "plan", model, "--output", tmp_path / "no" / "x").returncode == 3
