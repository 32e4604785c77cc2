"""The wheel works away from the clone and carries what it needs."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROLOGUE = """
import sys
wheel, clone = sys.argv[1:3]
def foreign(path):
    return path and path.rstrip("/") != clone
sys.path[:] = [wheel] + [p for p in sys.path if foreign(p)]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel, unpacked as an installer would."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT],
        check=True,
        capture_output=True,
        text=True,
    )
    (path,) = out.glob("*.whl")
    target = out / "site"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(target)
    return target


def inside(wheel, code, cwd):
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + code, str(wheel), str(ROOT)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_module_imports_from_the_wheel_alone(wheel, tmp_path):
    code = """
import importlib, pathlib, re
boards_only = re.compile(r"^(import|from) (micropython|cryptolib|uctypes|machine)", re.M)
count = 0
for path in sorted(pathlib.Path(wheel).rglob("*.py")):
    name = ".".join(path.relative_to(wheel).with_suffix("").parts)
    name = name.removesuffix(".__init__")
    # A tier of kernels says by ImportError that this machine is not one of its own.
    tier = "/tflite/kernels/" in str(path) and path.stem not in ("__init__", "python", "host_numpy")
    if tier or boards_only.search(path.read_text()) or name.endswith("__main__"):
        continue
    module = importlib.import_module(name)
    assert str(module.__file__).startswith(wheel), module.__file__
    count += 1
print(count)
"""
    assert int(inside(wheel, code, tmp_path)) > 60


@pytest.mark.parametrize("command", ["edge_agent.cli", "gateway.cli"])
def test_commands_run_from_the_wheel(wheel, tmp_path, command):
    code = f"""
import importlib
try:
    importlib.import_module({command!r}).main(["--help"])
except SystemExit as end:
    assert not end.code
"""
    assert "usage: edge-" in inside(wheel, code, tmp_path)


def test_it_carries_the_cddl_and_the_licence(wheel):
    assert (wheel / "edge_agent" / "frame.cddl").is_file()
    assert (wheel / "gateway" / "pointer.cddl").is_file()
    assert any("LICENSE" in p.name for p in wheel.rglob("LICENSE*"))
    assert not list(wheel.rglob("*.key")) and not (wheel / "tests").exists()


def test_native_kernels_that_were_built_are_in_it(wheel, tmp_path):
    """And run: on the tier that a board would take, away from the clone."""
    natmod = "mpy_port/tflite/natmod"
    built = {p.name for p in (ROOT / natmod).glob("kernels*") if p.suffix in (".mpy", ".json")}
    assert {p.name for p in (wheel / natmod).glob("kernels*") if p.suffix != ".h"} == built
    tier = "native" if "kernels_x64.mpy" in built else "viper"
    code = f"""
import json, numpy
from edge_agent.cli import main
from edge_agent.tools.bundle import bundle
rows = numpy.random.default_rng(1).integers(-128, 128, (20, 48), numpy.int8)
numpy.save("in.npy", rows)
model = {str(ROOT / "models" / "watch_mlp_int8.tflite")!r}
for runtime, tier in (("micropython", {tier!r}), ("own", "python")):
    assert main(["infer", "--model", model, "--input", "in.npy", "--output", runtime + ".npy",
                 "--runtime", runtime, "--tier", tier, "--raw"]) == 0
assert (numpy.load("micropython.npy") == numpy.load("own.npy")).all()
about = bundle("x64", "board", "unix", "board.img", scripts=())
print(about["kernels"], len(about["files"]))
"""
    said = inside(wheel, code, tmp_path).splitlines()[-1].split()
    assert said[0] == ("kernels_x64.mpy" if tier == "native" else "None")
    assert int(said[1]) > 10


def test_it_makes_what_a_board_gets(wheel, tmp_path):
    """`edge-agent bundle` away from the clone, and what `flash` knows of boards and of USB."""
    code = """
import json
from edge_agent.cli import main
from edge_agent.tools import freight, ports
assert main(["bundle", "--board", "qemu-m3", "--out", "board", "--json"]) == 0
made = json.load(open("board/bundle.json"))
assert freight.check_bundle(__import__("pathlib").Path("board"), "qemu-m3", "armv7m") == made
assert len(ports.known()["usb"]) > 5
print(made["kernels"], "lib/edge_app.mpy" in made["files"])
"""
    said = inside(wheel, code, tmp_path).split()
    built = (ROOT / "mpy_port/tflite/natmod/kernels_armv7m.mpy").exists()
    assert said[-2:] == ["kernels_armv7m.mpy" if built else "None", "True"]
