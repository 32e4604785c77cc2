"""Frames per second from an emulated board over its serial line, beside umqtt.simple.

    python benchmarks/link.py [--quick] [--json FILE] [--check]

Both clients run on the firmware of hw_tests/boards (RISC-V and Cortex-M3, in QEMU) and
publish 250-byte frames with QoS 1 to a real mosquitto, over machine.UART(1) and a line that
delays every chunk by 10 ms each way. They take turns; a figure is the median of the rounds.
umqtt.simple 1.3.4 gets a wrapper that makes a socket of the UART; it sends one packet and
waits for its PUBACK. Ours has a window of 1, 8 and 32.

These are figures of an emulator, of use only beside each other.

Needs `make firmware`. --check exits 1 when ours at window 8 is below 3x umqtt.simple.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "host"), str(ROOT / "hw_tests")]

from harness import machine  # noqa: E402
from harness.bench import Bench, Ledger  # noqa: E402
from harness.deploy import commission, deployed, settings  # noqa: E402
from harness.linkbox import LinkBox  # noqa: E402
from harness.machine import KINDS, Machine  # noqa: E402

from benchmarks.mqtt import umqtt_folder  # noqa: E402

ONE_WAY_S = 0.010
WINDOWS = (0, 1, 8, 32)  # 0: umqtt.simple
NAMES = {0: "umqtt.simple", 1: "window 1", 8: "window 8", 32: "window 32"}
GOAL = 3.0


def board(kind: str, place: Path, bench: Bench, umqtt: "Path | None") -> Machine:
    made = Machine(kind, place / kind)
    made.restore(deployed(kind))
    commission(made, settings(bench.enrol(kind)))
    if umqtt is not None:
        with made.start(options={"main": 0}), made.repl() as repl:
            repl.put("/umqtt_simple.py", (umqtt / "umqtt" / "simple.py").read_bytes())
    return made


def rate(made: Machine, port: int, window: int, count: int) -> float:
    """Frames per second of one run."""
    before = len(Ledger(made.ledger).of("f"))
    options = {"job": "hil_flood", "window": window, "windows": count}
    made.start(line=port, options=options)
    status = made.wait(120)
    found = Ledger(made.ledger).of("f")
    if status or len(found) == before:
        raise SystemExit(f"{made.kind} window {window}: ended with {status}\n{made.story()}")
    _, frames, ms = found[-1]
    return 1000 * int(frames) / int(ms)


def measure(count: int, rounds: int, umqtt: "Path | None") -> "dict[str, dict[str, float]]":
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name) / "bench")
        bench.start_broker()
        try:
            with LinkBox(bench.port) as box:
                box.delay(ONE_WAY_S)
                for kind in KINDS:
                    made = board(kind, Path(name), bench, umqtt)
                    rates: dict[int, list[float]] = {w: [] for w in WINDOWS if w or umqtt}
                    for _ in range(rounds):
                        for window, values in rates.items():
                            values.append(rate(made, box.port, window, count))
                    found[kind] = {NAMES[w]: statistics.median(v) for w, v in rates.items()}
        finally:
            bench.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    lack = machine.missing()
    if lack:
        print(f"link: missing: {', '.join(lack)}; `make firmware` builds it", file=sys.stderr)
        return 3
    umqtt = umqtt_folder(None)
    count, rounds = (60, 1) if options.quick else (200, 3)
    found = measure(count, rounds, umqtt)
    print(f"{'frames/s':10}" + "".join(f"{NAMES[w]:>16}" for w in WINDOWS))
    worst = None
    for kind, rates in found.items():
        line = [f"{rates[NAMES[w]]:16.0f}" if NAMES[w] in rates else f"{'-':>16}" for w in WINDOWS]
        print(f"{kind:10}" + "".join(line))
        if NAMES[0] in rates:
            ratio = rates[NAMES[8]] / rates[NAMES[0]]
            worst = ratio if worst is None else min(worst, ratio)
            print(f"{'':10}window 8 is {ratio:.1f}x umqtt.simple")
    report: dict[str, Any] = {"frames_per_s": found, "count": count, "rounds": rounds}
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if options.check and (worst is None or worst < GOAL):
        print(f"below the goal of {GOAL}x at window 8", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
