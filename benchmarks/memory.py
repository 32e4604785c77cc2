"""Does a whole device fit a board? Heap of the 32-bit interpreter: code, live, peak.

    python benchmarks/memory.py [--quick] [--full] [--json FILE] [--check]

The bundle for a board (edge_agent/tools/bundle.py) is loaded by MicroPython built for 32-bit
words and floats (`make micropython`), where an object takes what it takes on a board. asyncio
is frozen there as on boards. The device is complete: agent, journal on files, crypto, MQTT
client, `.tflite` interpreter with native kernels and the shipped model; mosquitto and a
gateway answer it. Native code is outside the heap here and inside it on boards: as many
bytes as the largest file of native kernels for a board are taken in its place.

code    heap that a module keeps after its import, in the order they depend on each other
live    after a collection, with everything in custody
peak    the smallest heap with which a run still comes to its end without an error: the live
        part, what is in use between two collections, and what fragmentation takes
        (with gc.threshold(4096), which a board's main.py should set too)
leak    growth of the live part: the highest mark of a run's second half, less that of its first

Two ways to hold the code: .mpy files, which every firmware can load, into RAM; and ROMFS,
where bytecode, texts and the model stay in flash (firmware with a ROMFS partition). Not
counted: sensor driver, TLS. Counted although it is no part of the device: this benchmark's
own script, some 3 KB. --check exits 1 when the live part grows, or the device does not fit
110 KB of heap with its code in ROMFS. What it needs with its code in RAM is printed, and what
it needs when it takes mail: a head for the shipped model and 16 outcomes of others, sent
by the gateway during the run, which decide every outcome from then on.
"""

import argparse
import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "host")]

from gateway_kit import (  # noqa: E402
    broker_running,
    enrol_device,
    free_port,
    gateway,
    gateway_running,
)

from edge_agent.head import Row, encode_row  # noqa: E402
from edge_agent.synthesis import Neighbour, encode_neighbour  # noqa: E402
from edge_agent.tools import bundle  # noqa: E402
from gateway.mailbox import NEIGHBOUR, Mailbox  # noqa: E402

BUILT = ROOT / ".cache" / "micropython"
BUDGET = 110 * 1024
LEAK = 256  # bytes
MARKS = 20  # the live part swings by some 600 bytes with the fill of the newest segment
MODEL = ROOT / "models" / "watch_mlp_int8.tflite"
DOMAIN = ROOT / "models" / "watch.domain"
NATMOD = ROOT / "mpy_port" / "tflite" / "natmod"
HOWS = ("in RAM", "in ROMFS")

# What a device imports, in groups: each with what it needs and those before do not.
GROUPS = {
    "agent": ("edge_agent.config", "edge_agent.domain", "edge_agent.agent"),
    "crypto, clock, store": ("mpy_port.crypto", "mpy_port.clock", "mpy_port.flash_store"),
    "MQTT client": ("mpy_port.mqtt.client",),
    "model runtime": ("mpy_port.tflite.classifier",),
    "board": ("mpy_port.boards.unix",),
    "let go of after the start": (
        "edge_agent.config_fields",
        "mpy_port.tflite.loading",
        "mpy_port.tflite.outputs",
        "mpy_port.tflite.kernels.native",
    ),
}

# The same, as the bundle has it.
SMALL = [
    "edge_agent.device",
    "edge_agent.config_fields",
    "mpy_port.tflite.loading",
    "mpy_port.tflite.kernels.native",
]

Costs = dict[str, tuple[int, int]]


def modules(first: "tuple[str, ...]") -> list[str]:
    """The modules that these need, themselves included, each after those it needs."""
    order: list[str] = []
    open_: set[str] = set()

    def visit(name: str) -> None:
        if name in open_ or not source(name).exists():
            return
        open_.add(name)
        package = name if source(name).name == "__init__.py" else name.rpartition(".")[0]
        visit(name.rpartition(".")[0])
        for statement in ast.parse(source(name).read_text()).body:
            if isinstance(statement, ast.ImportFrom):
                up = package.split(".")[: 1 - statement.level or None] if statement.level else []
                module = ".".join([*up, *([statement.module] if statement.module else [])])
                for alias in statement.names:
                    visit(f"{module}.{alias.name}")
                visit(module)
        order.append(name)

    for name in first:
        visit(name)
    return order


def source(name: str) -> Path:
    path = ROOT / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


class Device:
    """A MicroPython process in a directory of its own."""

    def __init__(self, directory: Path, heap: int, arguments: list[str], rom: Path | None) -> None:
        environment = {"MICROPYPATH": ".frozen:.:lib", "PATH": os.environ.get("PATH", "")}
        if rom is not None:
            environment["ROM"] = str(rom)
            heap += rom.stat().st_size * 131 // 128 + 64  # stands for flash; the heap's own tables
        self.process = subprocess.Popen(
            [BUILT / "micropython32", "-X", f"heapsize={heap}", "-m", "memory", *arguments],
            cwd=directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def lines(self) -> Iterator[list[Any]]:
        """What the device says."""
        assert self.process.stdout and self.process.stderr
        try:
            for line in self.process.stdout:
                if line.startswith("qstr pool:"):
                    figures = dict(pair.split("=") for pair in line[10:].replace(",", "").split())
                    yield ["names", int(figures["n_qstr"])]
                elif line.startswith("["):
                    yield json.loads(line)
            self.error = self.process.stderr.read()
            self.code = self.process.wait()
        finally:
            self.process.kill()
            self.process.communicate()


class Bench:
    """The bundle in two places, and a configuration for each."""

    def __init__(self, directory: Path, enrolled: "dict[str, Any]") -> None:
        self.directory = directory
        compiler, scripts = bundle.find_mpy_cross(), ROOT / "benchmarks" / "device"
        script = scripts / "memory_run.py"
        run = directory / "memory_run.mpy"
        bundle.compile_one(compiler, "x86", script, run)
        ram, rom = directory / "ram", directory / "rom"
        about = bundle.bundle(
            "x86", ram, "unix", directory / "rom.img", (run, MODEL, DOMAIN), (script,)
        )
        plain = bundle.bundle("x86", directory / "plain", "unix", directory / "plain.img", (run,))
        self.sizes = {name: file["size"] for name, file in plain["files"].items()}
        self.sizes["lib/small.mpy"] = sum(
            file["size"]
            for name, file in about["files"].items()
            if name[4:-4].replace("/", ".") in SMALL
        )
        if about["kernels"] is None:
            raise SystemExit("no native kernels: run `make natmod`")
        rom.mkdir()
        self.native = max(
            (NATMOD / f"kernels_{arch}.mpy").stat().st_size for arch in ("armv7m", "rv32imc")
        )
        for place, at in ((ram, ""), (rom, "/rom/"), (directory / "plain", "")):
            bundle.compile_one(compiler, "x86", scripts / "memory.py", place / "memory.mpy")
            enrolled.update(
                model=at + MODEL.name,
                domain=at + DOMAIN.name,
                journal={"path": "journal"},
                delivery={"pace_per_s": 10000},
            )
            (place / "device.json").write_text(json.dumps(enrolled))
            (place / "device.json").chmod(0o600)
            (place / "peers.json").write_text(json.dumps({**enrolled, "peers": {}}))
            (place / "peers.json").chmod(0o600)
        self.groups: dict[str, list[str]] = {}
        known: list[str] = []
        for group, roots in GROUPS.items():
            self.groups[group] = [name for name in modules(roots) if name not in known]
            known += self.groups[group]
        (directory / "plain.json").write_text(json.dumps(known))
        (directory / "small.json").write_text(json.dumps(SMALL))

    def size(self, name: str) -> int:
        """Bytes of a module's .mpy file."""
        path = "lib/" + name.replace(".", "/")
        return int(self.sizes.get(path + ".mpy") or self.sizes.get(path + "/__init__.mpy", 0))

    def imports(self, how: str, what: str) -> Costs:
        """(bytes of heap, new names) by module of the plain or the small bundle.

        Names are kept once for all, in pools that double when they are full: the pool
        counts for the module that filled the one before.
        """
        directory = self.directory / {"plain": "plain", "small": "ram"}[what]
        image = self.directory / {"plain": "plain.img", "small": "rom.img"}[what]
        arguments = ["import", f"../{what}.json"]
        # In a place without modules of its own, when they are to come from the image.
        place = self.directory / "rom" if how == "in ROMFS" else directory
        device = Device(place, 1 << 20, arguments, image if how == "in ROMFS" else None)
        costs: Costs = {}
        before = names = 0
        for said in device.lines():
            if said[0] == "names":
                before, names = names, said[1]
            elif said[0] == "module":
                costs[said[1]] = (said[2], names - before)
        if device.code:
            raise SystemExit(device.error)
        return costs

    def run(
        self, heap: int, how: str, outcomes: int, every: int, config: str = "device.json"
    ) -> "dict[str, Any] | None":
        """Marks of a run of the device, or None when the heap did not suffice."""
        arguments = ("run", config, str(outcomes), str(every), str(self.native))
        directory = self.directory / ("rom" if how == "in ROMFS" else "ram")
        shutil.rmtree(directory / "journal", ignore_errors=True)
        image = self.directory / "rom.img" if how == "in ROMFS" else None
        device = Device(directory, heap, list(arguments), image)
        marks: dict[str, Any] = {"live": []}
        flash, self.why = 0, ""
        for said in device.lines():
            if said[0] == "rom":
                flash = said[1]
            elif said[0] == "mark":
                marks[said[1]] = said[2] - flash
            elif said[0] == "live":
                marks["live"].append((said[1], said[2] - flash))
            elif said[0] == "mail":
                marks["mail"] = said[1:]
            elif said[0] == "stuck":
                self.why = repr(said)
                return None
            elif said[0] == "end":
                marks["end"], marks["pending"] = said[3] - flash, said[2]
        if device.code or "end" not in marks:
            self.why = device.error
            # Too little heap for the interpreter's own start ends without a name.
            if "MemoryError" in device.error or "NLR" in device.error or "heap" in device.error:
                return None
            raise SystemExit(device.error)
        if marks["pending"]:
            raise SystemExit(f"{marks['pending']} outcomes did not reach custody")
        return marks

    def peak(self, how: str, outcomes: int, config: str = "device.json") -> int:
        """The smallest heap, in steps of 1 KiB, with which a run comes to its end."""
        low, high = 32, 384
        while high - low > 1:
            middle = (low + high) // 2
            if self.run(middle * 1024, how, outcomes, outcomes, config) is None:
                low = middle
            else:
                high = middle
        return high * 1024


def growth(live: list[int]) -> int:
    return max(live[MARKS // 2 + 1 :]) - max(live[1 : MARKS // 2 + 1])


def table(bench: Bench, costs: "dict[str, Costs]", small: "dict[str, Costs]") -> None:
    line = "  %-30s %7s %8s %9s %10s"
    print("code, bytes of heap")
    print(line % ("", ".mpy", *HOWS, "new names"))
    total = [0, 0, 0, 0]
    for group, names in bench.groups.items():
        sums = [0, 0, 0, 0]
        for name in sorted(names, key=lambda name: -costs["in RAM"][name][0]):
            cells = [bench.size(name), *(costs[how][name][0] for how in HOWS)]
            cells.append(costs["in RAM"][name][1])
            print(line % ("  " + name, *cells))
            sums = [a + b for a, b in zip(sums, cells, strict=True)]
        print(line % (group, *sums))
        total = [a + b for a, b in zip(total, sums, strict=True)]
    print(line % ("module by module", *total))
    cells = [[sum(c[k] for c in small[how].values()) for k in (0, 1)] for how in HOWS]
    print(line % ("the device, bundled", bench.size("small"), *(c[0] for c in cells), cells[0][1]))
    print()


def phases(runs: "dict[str, dict[str, Any]]") -> None:
    names = [n for n in next(iter(runs.values())) if n not in ("live", "end", "pending", "mail")]
    print("live, bytes of heap                      " + "".join("%10s" % how for how in runs))
    for name in names:
        print("  %-38s " % name + "".join("%10d" % marks[name] for marks in runs.values()))
    for i in (0, 1, MARKS // 2, MARKS):
        n = next(iter(runs.values()))["live"][i][0]
        values = "".join("%10d" % marks["live"][i][1] for marks in runs.values())
        print("  %-38s " % f"after {n} outcomes" + values)


def post(folder: Path, agent: bytes) -> int:
    """Put a head and outcomes of others into a device's mailbox: how many boxes that makes."""
    model_id = hashlib.sha256(MODEL.read_bytes()).digest()[:8]
    rows = [
        encode_row(Row(1, model_id, i, 7, bytes([37 * i & 255] * 64), 1000 * i, 30_000, 24))
        for i in range(7)
    ]
    mailbox = Mailbox(folder / "mailbox.db", 10_000)
    mailbox.put_head(agent, 1, rows, 0)
    for i in range(16):
        vector = bytes((i * 31 + j * 17) % 120 for j in range(64))
        near = Neighbour(bytes([i]) * 16, vector, i % 7, 100 + i, 0, 0)
        mailbox.put(agent, NEIGHBOUR, encode_neighbour(near), 1, 0)
    mailbox.close()
    return len(rows) + 16


def with_peers(bench: Bench, options: argparse.Namespace, boxes: int) -> "dict[str, Any]":
    """Live part and smallest heap of a device that takes mail."""
    found: dict[str, Any] = {}
    for how in HOWS:
        marks = bench.run(1 << 20, how, 320, 16, "peers.json")
        if marks is None:
            raise SystemExit("1 MiB did not suffice with peers: " + bench.why)
        if marks["mail"] != [boxes, 1, 16]:
            raise SystemExit(f"mail did not arrive: {marks['mail']}")
        found[how] = {"live": marks["live"][-1][1]}
        if how == "in ROMFS" or not options.quick:
            found[how]["peak"] = bench.peak(how, 200, "peers.json")
        print("  %-38s  %s %s" % ("with peers: live, smallest heap", how, found[how]))
    return found


def measure(options: argparse.Namespace, directory: Path) -> "dict[str, Any]":
    port = free_port()
    folder = directory / "gateway"
    gateway("init", folder, "--domain", DOMAIN, "--port", port)
    enrolled = json.loads(enrol_device(folder, "board").read_text())
    bench = Bench(directory, enrolled)
    costs = {how: bench.imports(how, "plain") for how in HOWS}
    small = {how: bench.imports(how, "small") for how in HOWS}
    table(bench, costs, small)
    outcomes = 100_000 if options.full else 400 if options.quick else 4000
    every = outcomes // MARKS // 16 * 16  # whole lots: nothing waits at a mark
    outcomes = every * MARKS
    runs: dict[str, dict[str, Any]] = {}
    peaks: dict[str, int] = {}
    with (
        broker_running("mosquitto", folder, port),
        gateway_running(folder, directory / "gateway.log"),
    ):
        for how in HOWS:
            marks = bench.run(1 << 20, how, outcomes, every)
            if marks is None:
                raise SystemExit("1 MiB did not suffice: " + bench.why)
            runs[how] = marks
        phases(runs)
        for how in HOWS if not options.quick else ("in ROMFS",):
            peaks[how] = bench.peak(how, 200)
            print("  %-38s  %s %9d" % ("smallest heap", how, peaks[how]))
        boxes = post(folder, bytes.fromhex(enrolled["agent"]))
        peers = with_peers(bench, options, boxes)
    leaks = {how: growth([live for _, live in marks["live"]]) for how, marks in runs.items()}
    print("  %-38s " % "leak" + "".join("%10d" % leak for leak in leaks.values()))
    return {
        "code": costs,
        "bundled": small,
        "live": runs,
        "peak": peaks,
        "peers": peers,
        "leak": leaks,
        "outcomes": outcomes,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run")
    parser.add_argument("--full", action="store_true", help="100,000 outcomes")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 when it does not fit or leaks")
    options = parser.parse_args()
    build = ["sh", str(ROOT / "tools" / "micropython.sh"), "mpy-cross", "micropython32"]
    if done := subprocess.run(build, check=False).returncode:
        return done
    with tempfile.TemporaryDirectory() as directory:
        figures = measure(options, Path(directory))
    missed = [
        "%s: the live part grew by %d bytes in %d outcomes" % (how, leak, figures["outcomes"] // 2)
        for how, leak in figures["leak"].items()
        if leak > LEAK
    ]
    for how, need in figures["peak"].items():
        over = need - BUDGET
        words = "too much" if over > 0 else "fits"
        cells = (how, need / 1024, BUDGET / 1024, words, abs(over) / 1024)
        print("%s: needs %.0f KB, budget %.0f KB: %s by %.0f KB" % cells)
        if over > 0 and how == "in ROMFS":
            missed.append("%s: %.1f KB over the budget" % (how, over / 1024))
    if options.json:
        Path(options.json).write_text(json.dumps({"budget": BUDGET, **figures}, indent=1) + "\n")
    for text in missed:
        print("MISSED", text)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
