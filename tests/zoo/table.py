"""Prints the conformance table: kernel tiers and interpreters against TensorFlow Lite Micro.

    python -m tests.zoo.table [--boards] [--json FILE]

For each: models whose outputs are all right, of how many, and bytes that differ. On this
machine every model of the zoo runs, and with --boards also on the emulated Cortex-M3 and
RISC-V, native kernels and viper, where the largest network does not fit the stock firmware
(five minutes). What is missing here (`make micropython`, `make natmod`) is left out by name.
Exit status 1 when an output is wrong.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from mpy_port.tflite import Interpreter

from . import cases
from .machines import BUILT, MACHINES, Machine, available, library
from .make_golden import digest, read_golden

ROOT = Path(__file__).resolve().parents[2]
INTERPRETERS = {
    "MicroPython, 64 bit": Path(sys.executable).with_name("micropython"),
    "MicroPython, 32 bit, float32": BUILT / "micropython32",
}
NATMOD = {"MicroPython, 64 bit": "x64", "MicroPython, 32 bit, float32": "x86"}
NATIVE = {"m3": ("armv7m", "armv6m"), "rv32": ("rv32imc",)}
NAMES = {"m3": "Cortex-M3 (QEMU)", "rv32": "rv32imac (QEMU)"}
TOO_LARGE = ("network_mobilenet",)


def on_host(tier, zoo):
    found = {}
    for name, (model, feeds) in zoo.items():
        net = Interpreter(model, tier=tier)
        out = b""
        for feed in feeds:
            at = 0
            for k, info in enumerate(net.inputs):
                net.set_input(feed[at : at + info.size], k)
                at += info.size
            net.invoke()
            out += b"".join(bytes(net.output(k)) for k in range(len(net.outputs)))
        found[name] = (digest(out), len(out))
    return found


def parsed(text):
    """name -> (hash, length), or None where the model did not run."""
    found = {}
    for line in text.splitlines():
        name, tier, *rest = line.split()
        found[name] = None if tier == "error" else (rest[0], int(rest[1]))
    return found


def on_unix(program, folder, tier):
    command = [program, "-X", "heapsize=8M", ROOT / "tests/zoo/run_models.py", folder, tier]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr)
    return parsed(done.stdout)


def on_board(machine, arch, tier, zoo):
    """Operators together, each network alone, as it would be on a board."""
    files = library(MACHINES[machine][0], native=False)
    if arch:
        name = f"mpy_port/tflite/natmod/kernels_{arch}.mpy"
        files[name] = (ROOT / name).read_bytes()
    files["tests/zoo/run_models.py"] = (ROOT / "tests/zoo/run_models.py").read_bytes()
    names = [n for n in zoo if n not in TOO_LARGE]
    groups = [[n for n in names if not n.startswith("network_")]]
    groups += [[n] for n in names if n.startswith("network_")]
    found = {}
    for group in groups:
        rom = dict(files)
        for name in group:
            model, feeds = zoo[name]
            rom["zoo/" + name + ".tflite"] = model
            rom["zoo/" + name + ".in"] = b"".join(feeds)
        with Machine(machine, rom, limit=600) as m:
            run = f"import tests.zoo.run_models as r\nr.main('/rom/zoo', {tier!r})"
            found.update(parsed(m.run(run)))
    return found


def rows(boards):
    """(interpreter, tier, results) of what there is here."""
    zoo = {name: (model, feeds) for name, model, feeds in cases.everything()}
    for tier in ("python", "numpy"):
        yield "CPython", tier, on_host(tier, zoo)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, (model, feeds) in zoo.items():
            (folder / (name + ".tflite")).write_bytes(model)
            (folder / (name + ".in")).write_bytes(b"".join(feeds))
        for name, program in INTERPRETERS.items():
            for tier in ("python", "viper", "native"):
                kernels = ROOT / f"mpy_port/tflite/natmod/kernels_{NATMOD[name]}.mpy"
                if not program.exists() or (tier == "native" and not kernels.exists()):
                    print(f"left out: {name}, {tier}: not built here", file=sys.stderr)
                else:
                    yield name, tier, on_unix(program, folder, tier)
    for machine in MACHINES if boards else ():
        if available(machine):
            print(f"left out: {NAMES[machine]}: {available(machine)}", file=sys.stderr)
            continue
        yield NAMES[machine], "viper", on_board(machine, None, "viper", zoo)
        for arch in NATIVE[machine]:
            yield NAMES[machine], f"native {arch}", on_board(machine, arch, "native", zoo)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boards", action="store_true", help="on the emulated boards, too")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    golden = {name: (hashed, length) for name, (hashed, length, _) in read_golden().items()}
    table, wrong = [], 0
    print(f"{'interpreter':<30} {'kernels':<16} {'models':>9} {'bytes':>9}  wrong")
    for interpreter, tier, found in rows(options.boards):
        right = [n for n in found if found[n] == golden[n]]
        bad = sorted(set(found) - set(right))
        size = sum(golden[n][1] for n in right)
        table.append(
            {
                "interpreter": interpreter,
                "tier": tier,
                "right": len(right),
                "bytes": size,
                "wrong": bad,
            }
        )
        wrong += len(bad)
        print(
            f"{interpreter:<30} {tier:<16} {len(right):>4}/{len(found):<4} {size:>9}  "
            + (", ".join(bad) or "none"),
            flush=True,
        )
    if options.json:
        Path(options.json).write_text(json.dumps(table, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
