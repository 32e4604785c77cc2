"""Instructions that the TFLite kernels take on Cortex-M3 and 32-bit RISC-V, by tier.

    python benchmarks/kernels.py [--quick] [--json FILE] [--check] [--write]

MicroPython's stock firmware runs in QEMU, which counts instructions (-icount): the numbers
are exact and the same on every host, but they are not cycles, and no silicon was involved.
Five layers, each counted as one call from Python, requantisation and overhead included,
divided by the multiply-accumulates of the unpadded formula (those with padding count too).
Every output is compared with the numpy kernels. Then a keyword-spotting network (the
depthwise-separable one of MLPerf Tiny, random weights): instructions to load it from
ROMFS (the library's modules imported before) and to run it, and the heap it holds.

The columns of CMSIS-NN and of TensorFlow Lite Micro's reference kernels are quoted, not
measured by this script: gcc 12.2, -Ofast and -O2, the same layers, emulator and way of
counting, called from C. No such figures exist for CMSIS-NN on RISC-V.

--quick leaves out the plain Python tier. --check exits 1 when a goal is missed. --write
updates the figures that `edge-agent preflight` reckons with.
"""

import argparse
import json
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mpy_port.tflite.kernels import host_numpy  # noqa: E402
from tests.zoo import networks  # noqa: E402
from tests.zoo.machines import MACHINES, Machine, library  # noqa: E402

INSTRUCTIONS = ROOT / "edge_agent" / "tools" / "instructions.json"
# name: kernel, N to PW of its parameters, FC
LAYERS = {
    "1x1 64>64": ("conv_2d", (1, 5, 5, 64, 5, 5, 64, 1, 1, 1, 1, 1, 1, 0, 0), 64),
    "3x3 16>16": ("conv_2d", (1, 16, 16, 16, 16, 16, 16, 3, 3, 1, 1, 1, 1, 1, 1), 16),
    "depthwise 3x3 x64": (
        "depthwise_conv_2d",
        (1, 10, 10, 64, 10, 10, 64, 3, 3, 1, 1, 1, 1, 1, 1),
        1,
    ),
    "dense 256>128": ("fully_connected", (1, 1, 1, 256, 1, 1, 128, 1, 1, 1, 1, 1, 1, 0, 0), 256),
    "10x4 1>64": ("conv_2d", (1, 49, 10, 1, 25, 5, 64, 10, 4, 2, 2, 1, 1, 4, 1), 1),
}
GOALS = {
    ("m3", "native"): (3.3, 3.0, 10.5, 3.1, 4.5),
    ("rv32", "native"): (4.0, 4.3, 11.0, 4.3, 5.8),
    ("m3", "viper"): (29, 29, 46, 29, 29),
    ("rv32", "viper"): (29, 29, 46, 29, 29),
}
QUOTED = {
    ("m3", "CMSIS-NN"): (3.3, 3.3, 9.5, 3.5, 4.3),
    ("m3", "TFLM reference"): (8.9, 9.1, 33, 6.2, 38.7),
    ("rv32", "TFLM reference"): (10.0, 9.5, 28.6, 8.2, 31.3),
}
NETWORK_GOALS = {"load": 5e6, "invoke": {"m3": 14e6, "rv32": 18e6}, "heap": 28 * 1024}

# Runs on the machine.
LAYER_SCRIPT = """
import gc
from array import array
def layer(module, kernel, k):
    data = []
    for name in ("x", "w", "bias", "mul", "shift", "p"):
        with open("/rom/%d/%s" % (k, name), "rb") as file:
            data.append(memoryview(file))
    x, w, bias, mul, shift, p = data
    x = memoryview(array("b", bytes(x)))
    bias, mul, p = [array("i", bytes(v)) for v in (bias, mul, p)]
    shift = array("b", bytes(shift))
    out = memoryview(array("b", bytes(p[4] * p[5] * p[6])))
    run = getattr(module, kernel)
    gc.collect()
    start = ticks()
    run(out, x, w, bias, mul, shift, p)
    return ticks() - start, bytes(out)
"""
NETWORK_SCRIPT = """
import gc
from mpy_port.tflite import Interpreter
Interpreter("/rom/k.tflite", tier=%r)  # modules are imported once
gc.collect()
before = gc.mem_alloc()
start = ticks()
model = Interpreter("/rom/k.tflite", tier=%r)
load = ticks() - start
gc.collect()
heap = gc.mem_alloc() - before
model.set_input(memoryview(open("/rom/k.in", "rb")))
gc.collect()
start = ticks()
model.invoke()
invoke = ticks() - start
print(load, invoke, heap, model.arena_bytes, bytes(model.output()).hex())
"""


def arguments(name: str) -> "tuple[str, dict[str, Any], int]":
    """Kernel, its arguments by name, and multiply-accumulates."""
    kernel, p, fc = LAYERS[name]
    rs = np.random.RandomState(1)
    taps = p[7] * p[8] * (1 if kernel == "depthwise_conv_2d" else fc)
    oc = p[6]
    return (
        kernel,
        {
            "x": rs.randint(-128, 128, p[1] * p[2] * p[3]).astype(np.int8),
            "w": rs.randint(-127, 128, oc * taps).astype(np.int8),
            "bias": array("i", rs.randint(-9000, 9000, oc).tolist()),
            "mul": array("i", rs.randint(1 << 30, 1 << 31, oc).tolist()),
            "shift": array("b", (-8 - rs.randint(0, 2, oc)).tolist()),
            "p": array("i", [*p, -5, 3, -128, 127, 1, fc]),
        },
        p[4] * p[5] * oc * taps,
    )


def expected(kernel: str, a: "dict[str, Any]") -> bytes:
    p = a["p"]
    out = memoryview(bytearray(p[4] * p[5] * p[6])).cast("b")
    x, w = memoryview(a["x"].tobytes()).cast("b"), memoryview(a["w"].tobytes())
    getattr(host_numpy, kernel)(out, x, w, a["bias"], a["mul"], a["shift"], p)
    return bytes(out)


def layers(machine: str, tier: str) -> "dict[str, float]":
    """Instructions per multiply-accumulate of every layer."""
    prepared = [arguments(name) for name in LAYERS]
    files = library(MACHINES[machine][0])
    files["layer.py"] = LAYER_SCRIPT.encode()
    for k, (_, a, _) in enumerate(prepared):
        for name, value in a.items():
            files["%d/%s" % (k, name)] = value.tobytes()
    found = {}
    with Machine(machine, files, limit=600) as m:
        m.run("import layer\nlayer.ticks = ticks\n")
        m.run("import mpy_port.tflite.kernels.%s as tier" % tier)
        for k, name in enumerate(LAYERS):
            kernel, a, macs = prepared[k]
            said = m.run("n, out = layer.layer(tier, %r, %d)\nprint(n, out.hex())" % (kernel, k))
            n, out = said.split()
            if bytes.fromhex(out) != expected(kernel, a):
                raise SystemExit("%s, %s, %s: wrong output" % (machine, tier, name))
            found[name] = round(int(n) * m.per_tick / macs, 2)
    return found


def network(machine: str, tier: str) -> "dict[str, int]":
    """What the keyword-spotting network costs: instructions and bytes."""
    net = networks.Net("keyword_spotting")
    sources, outputs = networks.keyword_spotting(net)
    model = net.finish(sources, outputs[:1])
    feed = np.random.RandomState(2).randint(-128, 128, 490).astype(np.int8).tobytes()
    from mpy_port.tflite import Interpreter

    right = Interpreter(model, tier="numpy").run(feed)
    files = {**library(MACHINES[machine][0]), "k.tflite": model, "k.in": feed}
    with Machine(machine, files, limit=600) as m:
        load, invoke, heap, arena, out = m.run(NETWORK_SCRIPT % (tier, tier)).split()
        if bytes.fromhex(out) != right:
            raise SystemExit("%s, %s: wrong output of the network" % (machine, tier))
        return {
            "load": int(load) * m.per_tick,
            "invoke": int(invoke) * m.per_tick,
            "heap": int(heap),
            "arena": int(arena),
        }


def write(result: "dict[str, Any]") -> None:
    """instructions.json: per architecture, tier and kind of layer, for preflight."""
    kinds = ("conv_1x1", "conv", "depthwise", "fully_connected")  # the first four of LAYERS
    figures = {
        "source": "benchmarks/kernels.py: instructions counted by QEMU, requantisation included, "
        "on layers of 64, 16, 64 and 128 output channels",
        "per_mac": {
            MACHINES[machine][0]: {
                tier: dict(zip(kinds, row.values(), strict=False)) for tier, row in tiers.items()
            }
            for machine, tiers in result["layers"].items()
        },
    }
    INSTRUCTIONS.write_text(json.dumps(figures, indent=1) + "\n")


def show(result: "dict[str, Any]") -> "list[str]":
    """Print the tables; the goals that were missed."""
    missed = []
    print("Instructions per multiply-accumulate; goal in brackets")
    print("%-22s" % "" + "".join("%19s" % name for name in LAYERS))
    for machine, tiers in result["layers"].items():
        for tier, row in tiers.items():
            line = "%-22s" % ("%s %s" % (machine, tier))
            for k, (name, value) in enumerate(row.items()):
                goal = GOALS.get((machine, tier), (0,) * 5)[k]
                line += "%19s" % ("%.2f" % value + (" (%g)" % goal if goal else ""))
                if goal and value > goal:
                    missed.append("%s %s %s: %.2f > %g" % (machine, tier, name, value, goal))
            print(line)
        for (where, name), row in QUOTED.items():
            if where == machine:
                line = "%-22s" % ("%s %s*" % (machine, name))
                print(line + "".join("%19.1f" % value for value in row))
    print("* quoted, see the head of this script.\n")
    print("Keyword spotting (2.66 M multiply-accumulates), millions of instructions, bytes")
    print("%-22s%18s%18s%18s%9s" % ("", "load", "invoke", "heap held", "arena"))
    for machine, tiers in result["network"].items():
        for tier, row in tiers.items():
            limits = {
                "load": NETWORK_GOALS["load"],
                "invoke": NETWORK_GOALS["invoke"][machine],  # type: ignore[index]
                "heap": NETWORK_GOALS["heap"],
            }
            for key, limit in limits.items():
                if tier == "native" and row[key] > limit:
                    missed.append("%s %s: %d > %d" % (machine, key, row[key], limit))
            text = ["%.2f" % (row["load"] / 1e6), "%.2f" % (row["invoke"] / 1e6), str(row["heap"])]
            if tier == "native":
                text[0] += " (%g)" % (limits["load"] / 1e6)
                text[1] += " (%g)" % (limits["invoke"] / 1e6)
                text[2] += " (%d)" % limits["heap"]
            print("%-22s%18s%18s%18s%9d" % ("%s %s" % (machine, tier), *text, row["arena"]))
    print("\nNative module: " + ", ".join("%s %d bytes" % s for s in result["natmod"].items()))
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="without the plain Python tier")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    parser.add_argument("--write", action="store_true", help="write instructions.json")
    options = parser.parse_args()
    if options.write and options.quick:
        parser.error("--write needs all tiers")
    for tool in (
        ("tools/micropython.sh", "mpy-cross", "stock-m3.elf", "stock-rv32.elf"),
        ("tools/natmod.sh", "armv7m", "rv32imc"),
    ):
        done = subprocess.run(["sh", ROOT / tool[0], *tool[1:]], stdout=subprocess.DEVNULL)
        if done.returncode:
            return 3
    tiers = ("native", "viper") if options.quick else ("native", "viper", "python")
    result: dict[str, Any] = {
        "layers": {m: {t: layers(m, t) for t in tiers} for m in MACHINES},
        "network": {m: {t: network(m, t) for t in tiers[:2]} for m in MACHINES},
        "natmod": {
            path.stem.partition("_")[2]: path.stat().st_size
            for path in sorted((ROOT / "mpy_port/tflite/natmod").glob("kernels_*.mpy"))
        },
    }
    missed = show(result)
    result["missed"] = missed
    if options.write:
        write(result)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    for line in missed:
        print("above the goal: " + line)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
