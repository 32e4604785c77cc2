"""What an outcome costs a board: erases and bytes of flash by sync policy, how long the flash
lives, what a wake from deep sleep takes until the gateway has confirmed what was sensed, and
the smallest heap.

    python benchmarks/flash.py [--quick] [--json FILE] [--check]

The whole agent runs on the emulated boards of hw_tests and delivers to a real gateway, so
that writing, acknowledging and freeing are all in the figures: erases and bytes programmed
are counted by the flash itself, under real littlefs, as esp32 (RISC-V board) and rp2
(Cortex-M3) mount it. The difference of a long run and a short one leaves out starting.

Years of life: 2 MB of flash with blocks of 4 KiB, each good for 100,000 erases, which
littlefs spreads evenly; one outcome a minute.

A wake is a whole boot: power-on, code and model from ROMFS, journal, sensing, connection,
hello, frames, acknowledgement by the gateway (not only by the broker), deep sleep. Its
instructions are counted by a plugin of QEMU (_count.c) from the first to the last; bytes are
those on the line, both ways, of MQTT without TCP.

Heap: the smallest, in steps of 4 KiB, with which 60 outcomes arrive over a line that breaks
once. Code and models are in ROMFS, used where they lie; the agent has its journal, MQTT and the
watch's perceptron. Then the same beside a keyword-spotting network (DS-CNN of MLPerf Tiny,
random weights, native kernels), which stays loaded and has run.

Needs `make firmware` and a C compiler. --check exits 1 when a batch of 8 records costs more
than 0.5 erases an outcome, or when a batch saves less than half of the erases of syncing every
record.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "host"), str(ROOT / "hw_tests")]

from harness import machine  # noqa: E402
from harness.bench import Bench  # noqa: E402
from harness.deploy import MAIN, commission, deploy, settings  # noqa: E402
from harness.linkbox import LinkBox  # noqa: E402
from harness.machine import DEEPSLEEP, KINDS  # noqa: E402
from harness.world import World  # noqa: E402

from tests.zoo import networks  # noqa: E402

BLOCKS, CYCLES = 512, 100_000
A_YEAR = 365 * 24 * 60  # outcomes, one a minute
POLICIES = {
    "every record": {"sync": "every"},
    "batch of 4": {"batch": 4, "batch_ms": 5000},
    "batch of 8": {"batch": 8, "batch_ms": 5000},
    "batch of 32": {"batch": 32, "batch_ms": 60000},
}
GOAL, SAVING = 0.5, 2.0
WAKES = {0: "nothing to tell", 1: "one outcome", 8: "eight outcomes"}
KEYWORD = b"""from mpy_port.tflite import Interpreter
keyword = Interpreter("/rom/keyword.tflite", None, None)
keyword.set_input(bytes(490))
keyword.invoke()
from mpy_port.unload import unload
unload()
"""
HEAPS = {"the agent": b"", "and a keyword network": KEYWORD}
COLUMNS = ("instructions", "bytes up", "bytes down", "flash bytes", "flash erases")


def counted(world: World, windows: int) -> "tuple[int, int]":
    """(bytes programmed, erases) of a run."""
    world.go(windows=windows, gap=20)
    world.finish(300)
    _, _, programmed, erases, refused = world.ledger.of("s")[-1]
    assert refused == "0", "the flash refused a program"
    return int(programmed), int(erases)


def cost(kind: str, place: Path, policy: "dict[str, object]", short: int, long: int) -> dict:
    """Erases and bytes for each outcome."""
    bench = Bench(place / "bench")
    with bench, LinkBox(bench.port) as box:
        world = World(kind, place / "board", bench, box)
        try:
            world.commission(journal=policy)
            few, many = counted(world, short), counted(world, long)
        finally:
            world.close()
        assert bench.count() == short + long
    programmed, erases = ((b - a) / (long - short) for a, b in zip(few, many, strict=True))
    years = BLOCKS * CYCLES / max(erases, 1e-9) / A_YEAR
    return {"bytes": round(programmed), "erases": round(erases, 3), "years": round(years, 1)}


def counter(place: Path) -> Path:
    """The plugin, built."""
    out = place / "count.so"
    source = Path(__file__).with_name("_count.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", out, source], check=True)
    return out


def wakes(kind: str, place: Path, rounds: int) -> "dict[str, dict[str, float]]":
    """Medians of wakes that sense none, one and eight windows."""
    plugin, counted = counter(place), place / "counted"
    bench = Bench(place / "bench")
    found: dict[str, dict[str, float]] = {}
    with bench, LinkBox(bench.port) as box:
        world = World(kind, place / "board", bench, box)
        try:
            world.commission()
            wake(world, plugin, counted, 1)  # the one that makes the journal
            for windows in WAKES:
                lines = [wake(world, plugin, counted, windows) for _ in range(rounds)]
                middle = [statistics.median(column) for column in zip(*lines, strict=True)]
                found[WAKES[windows]] = dict(zip(COLUMNS, middle, strict=True))
        finally:
            world.close()
        assert bench.count() == len(world.ledger.records) == 1 + rounds * sum(WAKES)
    return found


def wake(world: World, plugin: Path, counted: Path, windows: int) -> "tuple[float, ...]":
    """Instructions, bytes up and down, bytes of flash and erases of one wake."""
    before = dict(world.box.counts)
    how = {"windows": windows, "first": 100 * len(world.machine.exits), "sleep_ms": 1000}
    status = world.wake(60, plugin=f"{plugin},out={counted}", **how)
    assert status == DEEPSLEEP and world.ledger.ends[-1] == 0, world.story()
    up, down = (world.box.counts[w] - before.get(w, 0) for w in ("bytes up", "bytes down"))
    _, _, programmed, erases, _ = world.ledger.of("s")[-1]
    return int(counted.read_text()), up, down, int(programmed), int(erases)


def keyword_model() -> bytes:
    net = networks.Net("keyword_spotting")
    sources, outputs = networks.keyword_spotting(net)
    return bytes(net.finish(sources, outputs[:1]))


def smallest_heap(kind: str, place: Path, start: bytes, least: int = 96) -> int:
    """KiB, from `least` on. start: what main.py does before the agent."""
    desk = place / "desk"
    desk.mkdir(exist_ok=True)
    image = deploy(kind, desk, {"keyword.tflite": keyword_model()})
    bench = Bench(place / "bench")
    with bench, LinkBox(bench.port) as box:

        def enough(kib: int) -> bool:
            world = World(kind, place / f"board-{kib}", bench, box)
            try:
                world.machine.restore(image)
                world.fields = settings(bench.enrol(f"board-{kib}"))
                commission(world.machine, world.fields)
                with world.machine.start(options={"main": 0}), world.machine.repl() as repl:
                    repl.put("/main.py", start + MAIN)
                world.go(windows=60, gap=10, heap=kib)
                world.until_committed(20)
                box.drop()
                world.finish()
                return len(world.ledger.records) == 60
            except AssertionError:  # it failed, or does not end
                return False
            finally:
                world.close()

        return next(kib for kib in range(least, 260, 4) if enough(kib))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one machine, fewer outcomes")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    lack = machine.missing()
    if lack:
        print(f"flash: missing: {', '.join(lack)}; `make firmware` builds it", file=sys.stderr)
        return 3
    short, long = (20, 100) if options.quick else (50, 350)
    found: dict[str, dict[str, dict]] = {}
    print(f"{'':7}{'sync':14}{'erases':>10}{'bytes':>10}{'years on 2 MB, one a minute':>32}")
    for kind in KINDS[:1] if options.quick else KINDS:
        for name, policy in POLICIES.items():
            with tempfile.TemporaryDirectory() as place:
                line = cost(kind, Path(place), policy, short, long)
            found.setdefault(kind, {})[name] = line
            print(f"{kind:7}{name:14}{line['erases']:10}{line['bytes']:10}{line['years']:32}")
    print(f"\n{'':7}{'a wake that has':18}" + "".join(f"{name:>14}" for name in COLUMNS))
    awake: dict[str, dict[str, dict[str, float]]] = {}
    for kind in found:
        with tempfile.TemporaryDirectory() as place:
            awake[kind] = wakes(kind, Path(place), 1 if options.quick else 5)
        for name, figures in awake[kind].items():
            print(f"{kind:7}{name:18}" + "".join(f"{figures[c]:14,.0f}" for c in COLUMNS))
    heaps: dict[str, dict[str, int]] = {}
    for kind in () if options.quick else KINDS:
        kib = 96
        for name, start in HEAPS.items():  # each takes more than the one before
            with tempfile.TemporaryDirectory() as place:
                kib = smallest_heap(kind, Path(place), start, kib)
            heaps.setdefault(kind, {})[name] = kib
            print(f"{kind:7}smallest heap, {name}: {kib} KiB")
    if options.json:
        report = {"policies": found, "wakes": awake, "heap_kib": heaps}
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if not options.check:
        return 0
    bad = []
    for kind, lines in found.items():
        every, batch = lines["every record"]["erases"], lines["batch of 8"]["erases"]
        if batch > GOAL or every < SAVING * batch:
            bad.append(f"{kind}: {batch} erases an outcome at 8, {every} one by one")
    for line in bad:
        print("below the goal: " + line, file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
