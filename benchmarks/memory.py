"""Does the agent fit a board? Heap of the 32-bit interpreter: code, live, peak.

    python benchmarks/memory.py [--quick] [--full] [--json FILE] [--check]

The modules are compiled to .mpy without line numbers (mpy-cross -O3) and loaded from a
directory by MicroPython built for 32-bit words and floats (`make micropython`), where an
object takes what it takes on a board. asyncio is frozen there as on boards. The device runs
the whole agent, journal and all, and this process is its gateway, over a pipe.

code    heap that a module keeps after its import, in the order they depend on each other
live    after a collection, with everything in custody
peak    the smallest heap with which a run still comes to its end without an error: the live
        part, what is in use between two collections, and what fragmentation takes
        (with gc.threshold(8192), which a board's main.py should set too)
leak    growth of the live part: the highest mark of a run's second half, less that of its first

Two ways to hold the code: in RAM, which every firmware can do, and in ROMFS, where bytecode
and texts stay in flash (firmware with a ROMFS partition); frozen into a firmware of one's
own the code takes less than that. Not counted: model, sensor driver, MQTT client, TLS.
Counted although it is no part of the agent: this benchmark's own script, some 10 KB.
--check exits 1 when the live part grows, or the agent does not fit 110 KB of heap with its
code in ROMFS. With its code in RAM it does not fit, which is printed and no goal.
"""

import argparse
import ast
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
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "core")]

from rig import AGENT, KEY, Gateway  # noqa: E402

from edge_agent.cpython.signer import HostCrypto  # noqa: E402
from edge_agent.domain import Features, VectorSpace, make_domain  # noqa: E402

BUILT = ROOT / ".cache" / "micropython"
BUDGET = 110 * 1024
LEAK = 256  # bytes
MARKS = 20  # the live part swings by some 600 bytes with the fill of the newest segment

# What is measured runs on these.
AGENT_MODULES = ("edge_agent.config", "edge_agent.agent")
# Their code alone is measured, each with what it needs and the agent does not.
BESIDE = (
    "mpy_port.crypto",
    "mpy_port.clock",
    "mpy_port.flash_store",
    "mpy_port.mqtt.client",
    "mpy_port.tflite.interpreter",
)

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


def compile_all(names: list[str], directory: Path) -> dict[str, int]:
    """.mpy files below `directory`, as a board gets them; their sizes by module."""
    sizes = {}
    for name in names:
        path = source(name)
        target = directory / path.relative_to(ROOT).with_suffix(".mpy")
        target.parent.mkdir(parents=True, exist_ok=True)
        compile_one(path, target)
        sizes[name] = target.stat().st_size
    return sizes


def compile_one(path: Path, target: Path) -> None:
    arguments = ["-O3", "-s", path.name, "-o", str(target), str(path)]
    subprocess.run([BUILT / "mpy-cross", *arguments], check=True)


def number(n: int) -> bytes:
    """A varuint of ROMFS: seven bits a byte, most significant first."""
    out = bytes([n & 127])
    while n > 127:
        n >>= 7
        out = bytes([n & 127 | 128]) + out
    return out


def record(kind: int, payload: bytes) -> bytes:
    return number(kind) + number(len(payload)) + payload


def romfs(directory: Path) -> bytes:
    """The directory as a ROMFS image (the format is in MicroPython's extmod/vfs_rom.c)."""

    def entries(at: Path) -> bytes:
        out = b""
        for path in sorted(at.iterdir()):
            name = path.name.encode()
            name = number(len(name)) + name
            if path.is_dir():
                out += record(4, name + entries(path))
            else:
                out += record(5, name + record(2, path.read_bytes()))
        return out

    payload = entries(directory)
    if len(record(0x14A6B1, payload)) % 2:
        payload += record(1, b"")  # a padding record is two bytes: make the length odd first
        payload = payload[:-2] + record(1, b"\x00")
    return record(0x14A6B1, payload)


class Device:
    """A MicroPython process in a directory of its own."""

    def __init__(self, directory: Path, heap: int, arguments: list[str], rom: Path | None) -> None:
        self.gateway = Gateway()
        environment = {"MICROPYPATH": ".frozen:.", "PATH": os.environ.get("PATH", "")}
        if rom is not None:
            environment["ROM"] = str(rom)
            heap += rom.stat().st_size + 256  # stands for flash
        self.process = subprocess.Popen(
            [BUILT / "micropython32", "-X", f"heapsize={heap}", "-m", "memory", *arguments],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def lines(self) -> Iterator[list[Any]]:
        """What the device says; frames are answered on the way."""
        try:
            yield from self._lines()
        finally:
            self.process.kill()
            self.process.communicate()

    def _lines(self) -> Iterator[list[Any]]:
        assert self.process.stdout and self.process.stdin and self.process.stderr
        for line in self.process.stdout:
            if line.startswith("qstr pool:"):
                figures = dict(pair.split("=") for pair in line[10:].replace(",", "").split())
                yield ["names", int(figures["n_qstr"]), int(figures["n_total_bytes"])]
                continue
            said = json.loads(line)
            if said[0] == "up":
                answers = [ack.hex() for ack in self.gateway.take(bytes.fromhex(said[1]))]
                # Only the bytes of the last are of use, and a long run has many.
                while len(self.gateway.held) > 100:
                    del self.gateway.held[next(iter(self.gateway.held))]
                self.process.stdin.write(json.dumps(answers) + "\n")
                self.process.stdin.flush()
            else:
                yield said
        self.error = self.process.stderr.read()
        self.code = self.process.wait()


class Bench:
    def __init__(self, directory: Path) -> None:
        self.names = modules(AGENT_MODULES)
        self.beside = {
            group: [name for name in modules((group,)) if name not in self.names]
            for group in BESIDE
        }
        every = modules((*AGENT_MODULES, *BESIDE))
        self.ram = directory / "ram"
        self.rom = directory / "rom"
        self.sizes = compile_all(every, self.ram)
        self.image = directory / "rom.img"
        self.image.write_bytes(romfs(self.ram))
        self.rom.mkdir()
        for place in (self.ram, self.rom):
            compile_one(ROOT / "benchmarks/device/memory.py", place / "memory.mpy")
            self._files(place)
            (place / "modules.json").write_text(json.dumps(every))

    def _files(self, directory: Path) -> None:
        crypto = HostCrypto()
        seed = bytes(range(32))
        features = Features("raw", 1, 64, 64, (0,), (1,), 1)
        space = VectorSpace(64, "profile/raw64", 1, 1, features)
        labels = ("normal", "imbalance", "looseness", "bearing")
        data = make_domain(
            crypto, seed, crypto.public_key(seed), "bench", 1, space, labels, ("unsure",),
            ("none", "alarm"), ("confirmed", "corrected"),
        )  # fmt: skip
        (directory / "domain.bin").write_bytes(data)
        config = {"agent": AGENT.hex(), "key": KEY.hex(), "delivery": {"pace_per_s": 10000}}
        (directory / "device.json").write_text(json.dumps(config))

    def device(self, heap: int, in_rom: bool, *arguments: str) -> Device:
        directory = self.rom if in_rom else self.ram
        shutil.rmtree(directory / "journal", ignore_errors=True)
        return Device(directory, heap, list(arguments), self.image if in_rom else None)

    def imports(self, in_rom: bool) -> dict[str, tuple[int, int]]:
        """(bytes of code, new names) by module, and under "names" what all names take.

        The interpreter keeps every new name once, in pools that double when they are
        full: charged to a module, a new pool would say nothing about that module.
        """
        device = self.device(1 << 20, in_rom, "import", "modules.json")
        costs: dict[str, tuple[int, int]] = {}
        names = first = (0, 0)
        for said in device.lines():
            if said[0] == "names":
                before, names = names, (said[1], said[2])
                first = names if not before[0] else first
            elif said[0] == "module":
                costs[said[1]] = (said[2] - names[1] + before[1], names[0] - before[0])
                if said[1] == self.names[-1]:
                    costs["names"] = (names[1] - first[1], names[0] - first[0])
        if device.code:
            raise SystemExit(device.error)
        return costs

    def run(self, heap: int, in_rom: bool, outcomes: int, every: int) -> "dict[str, Any] | None":
        """Marks of a run of the agent, or None when the heap did not suffice."""
        device = self.device(heap, in_rom, "run", str(outcomes), str(every))
        marks: dict[str, Any] = {"live": []}
        flash = 0
        for said in device.lines():
            if said[0] == "start":
                marks["start"] = said[1]
            elif said[0] == "rom":
                flash = said[1]
            elif said[0] == "mark":
                marks[said[1]] = said[2] - flash
            elif said[0] == "live":
                marks["live"].append((said[1], said[2] - flash))
            elif said[0] == "stuck":
                return None
            elif said[0] == "end":
                marks["end"] = said[3] - flash
                marks["pending"] = said[2]
        if device.code or "end" not in marks:
            # Too little heap for the interpreter's own start ends without a name.
            if "MemoryError" in device.error or "uncaught NLR" in device.error:
                return None
            raise SystemExit(device.error)
        if marks["pending"]:
            raise SystemExit(f"{marks['pending']} outcomes did not reach custody")
        return marks

    def peak(self, in_rom: bool, outcomes: int) -> int:
        """The smallest heap, in steps of 1 KiB, with which a run comes to its end."""
        low, high = 16, 512
        while high - low > 1:
            middle = (low + high) // 2
            if self.run(middle * 1024, in_rom, outcomes, outcomes) is None:
                low = middle
            else:
                high = middle
        return high * 1024


def growth(live: list[int]) -> int:
    return max(live[MARKS // 2 + 1 :]) - max(live[1 : MARKS // 2 + 1])


def table(bench: Bench, ram: "Costs", rom: "Costs") -> None:
    print("code, bytes of heap               .mpy    in RAM  in ROMFS  new names")
    line = "  %-28s %7s %9d %9d %10s"
    for name in sorted(bench.names, key=lambda name: -ram[name][0]):
        print(line % (name, bench.sizes[name], ram[name][0], rom[name][0], ram[name][1]))
    print(line % ("names", "", ram["names"][0], rom["names"][0], ""))
    sizes = sum(bench.sizes[name] for name in bench.names)
    total = [sum(costs[name][0] for name in [*bench.names, "names"]) for costs in (ram, rom)]
    print(line % ("the agent", sizes, *total, ram["names"][1]))
    print("beside it on a board, names not counted")
    for group, names in bench.beside.items():
        sizes = sum(bench.sizes[name] for name in names)
        cells = [sum(costs[name][0] for name in names) for costs in (ram, rom)]
        print(line % (group, sizes, *cells, sum(ram[name][1] for name in names)))
    print()


def phases(kinds: "dict[str, dict[str, Any]]") -> None:
    names = [
        name for name in next(iter(kinds.values())) if name not in ("live", "end", "pending", "rom")
    ]
    print("live, bytes of heap                      " + "".join("%10s" % kind for kind in kinds))
    for name in names:
        print("  %-38s " % name + "".join("%10d" % marks[name] for marks in kinds.values()))
    for i in (0, 1, MARKS // 2, MARKS):
        n = next(iter(kinds.values()))["live"][i][0]
        values = "".join("%10d" % marks["live"][i][1] for marks in kinds.values())
        print("  %-38s " % f"after {n} outcomes" + values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, no search for the peak")
    parser.add_argument("--full", action="store_true", help="100,000 outcomes")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 when it does not fit or leaks")
    options = parser.parse_args()
    build = ["sh", str(ROOT / "tools" / "micropython.sh"), "mpy-cross", "micropython32"]
    if done := subprocess.run(build, check=False).returncode:
        return done

    outcomes = 100_000 if options.full else 800 if options.quick else 4000
    every = outcomes // MARKS // 8 * 8  # whole batches: nothing waits at a mark
    outcomes = every * MARKS
    figures: dict[str, Any] = {"budget": BUDGET}
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        ram, rom = bench.imports(False), bench.imports(True)
        table(bench, ram, rom)
        runs = {}
        for kind, in_rom in (("in RAM", False), ("in ROMFS", True)):
            marks = bench.run(1 << 20, in_rom, outcomes, every)
            assert marks, "1 MiB did not suffice"
            runs[kind] = marks
        phases(runs)
        peaks = {}
        if not options.quick:
            for kind, in_rom in (("in RAM", False), ("in ROMFS", True)):
                peaks[kind] = bench.peak(in_rom, 400)
            print("  %-38s " % "peak" + "".join("%10d" % p for p in peaks.values()))
        leaks = {kind: growth([live for _, live in marks["live"]]) for kind, marks in runs.items()}
        print("  %-38s " % "leak" + "".join("%10d" % leak for leak in leaks.values()))
        figures.update(code={"ram": ram, "rom": rom}, live=runs, peak=peaks, leak=leaks)

    missed = [
        "%s: the live part grew by %d bytes in %d outcomes" % (kind, leak, outcomes // 2)
        for kind, leak in leaks.items()
        if leak > LEAK
    ]
    for kind in runs:
        need = peaks.get(kind, runs[kind]["live"][-1][1])
        word = "peak" if kind in peaks else "live alone"
        over = need - BUDGET
        print(
            "%s: %s %.1f KB, budget %.1f KB: %s by %.1f KB"
            % (kind, word, need / 1024, BUDGET / 1024, "too much" if over > 0 else "fits",
               abs(over) / 1024)
        )  # fmt: skip
        if over > 0 and kind == "in ROMFS":
            missed.append("%s: %.1f KB over the budget" % (kind, over / 1024))
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    for text in missed:
        print("MISSED", text)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
