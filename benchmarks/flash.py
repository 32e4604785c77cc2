"""What an outcome costs the flash of a board, by sync policy, and how long the flash lives.

    python benchmarks/flash.py [--quick] [--json FILE] [--check]

The whole agent runs on the emulated boards of hw_tests and delivers to a real gateway, so
that writing, acknowledging and freeing are all in the figures: erases and bytes programmed
are counted by the flash itself, under real littlefs, as esp32 (RISC-V board) and rp2
(Cortex-M3) mount it. The difference of a long run and a short one leaves out starting.

Years of life: 2 MB of flash with blocks of 4 KiB, each good for 100,000 erases, which
littlefs spreads evenly; one outcome a minute.

Needs `make firmware`. --check exits 1 when a batch of 8 records costs more than 0.5 erases
an outcome, or when a batch saves less than half of the erases of syncing every record.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "host"), str(ROOT / "hw_tests")]

from harness import machine  # noqa: E402
from harness.bench import Bench  # noqa: E402
from harness.linkbox import LinkBox  # noqa: E402
from harness.machine import KINDS  # noqa: E402
from harness.world import World  # noqa: E402

BLOCKS, CYCLES = 512, 100_000
A_YEAR = 365 * 24 * 60  # outcomes, one a minute
POLICIES = {
    "every record": {"sync": "every"},
    "batch of 4": {"batch": 4, "batch_ms": 5000},
    "batch of 8": {"batch": 8, "batch_ms": 5000},
    "batch of 32": {"batch": 32, "batch_ms": 60000},
}
GOAL, SAVING = 0.5, 2.0


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
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
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
