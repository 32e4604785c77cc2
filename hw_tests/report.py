"""What the machines went through, and what became of it.

    python hw_tests/report.py [--run NAME] [--check] [--json]

Reads what the tests of a run left (by default of the last one): a table of faults by kind
and machine, with records committed, delivered, lost and doubled, as judged at the gateway's
database. --check fails (1) below the goals of `make hil`, or when nothing was run (3).
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import results

CUTS, KILLS = 2000, 200
SUMS = (
    "runs", "cuts", "kills", "committed", "delivered", "unnoted", "lost", "doubled", "conflicts",
    "duplicates",
)  # fmt: skip


def summary(rows: "list[dict[str, object]]") -> "dict[tuple[str, str], dict[str, int]]":
    table: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: dict.fromkeys(SUMS, 0))
    for row in rows:
        line = table[str(row["what"]), str(row["machine"])]
        line["runs"] += 1
        for name in SUMS[1:]:
            line[name] += int(str(row.get(name, 0)))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", help="name of the run; the last one by default")
    parser.add_argument("--check", action="store_true", help="exit 1 below a goal")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    runs = results.runs()
    if options.run:
        runs = [path for path in runs if path.stem == options.run]
    if not runs:
        print("report: no results; `make hil` makes them", file=sys.stderr)
        return 3
    table = summary(results.load(runs[-1]))
    total = {name: sum(line[name] for line in table.values()) for name in SUMS}
    if options.json:
        rows = [{"what": w, "machine": m, **line} for (w, m), line in sorted(table.items())]
        print(json.dumps({"run": runs[-1].stem, "rows": rows, "total": total}, indent=1))
    else:
        print(f"run {runs[-1].stem}")
        print(f"{'fault':32} {'machine':7}" + "".join(f"{name:>11}" for name in SUMS))
        for (what, machine), line in sorted(table.items()):
            print(f"{what:32} {machine:7}" + "".join(f"{line[name]:11}" for name in SUMS))
        print(f"{'all':40}" + "".join(f"{total[name]:11}" for name in SUMS))
    if not options.check:
        return 0
    short = [
        f"{name}: {total[name]}, goal {goal}"
        for name, goal in (("cuts", CUTS), ("kills", KILLS))
        if total[name] < goal
    ]
    short += [f"{name}: {total[name]}" for name in ("lost", "doubled") if total[name]]
    for line in short:
        print("below the goal: " + line, file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
