"""The same pointers over five kinds of route, all real: what is found, and how fast.

    python benchmarks/routes.py [--quick] [--json FILE] [--check]

Two members of a network on loopback. One announces pointers of 220 bytes under keys of their
own; the other looks 24 keys up at a time. The media are those of the conformance suite
(tests/host/test_routes.py): a shared folder, SQLite, PostgreSQL, mosquitto, a directory over
HTTPS, and a DHT with nodes besides.

--check exits 1 when a route does not find every pointer.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "host")]

from route_kit import later, media_class, token  # noqa: E402

KINDS = ("folder", "sqlite", "postgres", "pubsub", "http", "dht")
POINTER = 220
LOOKUPS = 24
DEADLINE_S = 3.0
AT_ONCE = 20


async def one(
    kind: str, shared: Any, folder: Path, pointers: int, queries: int
) -> "dict[str, Any]":
    medium = media_class(kind)(folder, shared)
    await medium.begin()
    try:
        giver, asker = await medium.start(2)
        stored = {os.urandom(20): os.urandom(POINTER) for _ in range(pointers)}
        todo = list(stored.items())
        for at in range(0, pointers, AT_ONCE):
            some = todo[at : at + AT_ONCE]
            jobs = (giver.announce(k, v, later(), token()) for k, v in some)
            assert all(await asyncio.gather(*jobs)), kind
        found, times = 0, []
        keys = list(stored)
        for n in range(queries):
            asked = [keys[(n * LOOKUPS + i) % pointers] for i in range(LOOKUPS)]
            began = time.monotonic()
            answer = await asker.lookup(asked, DEADLINE_S)
            times.append((time.monotonic() - began) * 1000)
            found += sum(stored[k] in answer.values.get(k, ()) for k in asked)
        return {
            "route": kind,
            "pointers": pointers,
            "found": found / (queries * LOOKUPS),
            "p50_ms": statistics.median(times),
            "p99_ms": sorted(times)[int(0.99 * len(times))],
        }
    finally:
        await medium.finish()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer queries")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 when one finds too little")
    options = parser.parse_args()
    rows = []
    print(f"{'':10} {'found':>7} {'p50 ms':>8} {'p99 ms':>8}   (24 lookups at once)")
    for kind in KINDS:
        with (
            tempfile.TemporaryDirectory() as ground,
            tempfile.TemporaryDirectory() as folder,
            media_class(kind).ground(Path(ground)) as shared,
        ):
            queries = 30 if options.quick else 100
            row = asyncio.run(one(kind, shared, Path(folder), 240, queries))
        rows.append(row)
        print(
            f"{kind:10} {row['found']:7.1%} {row['p50_ms']:8.1f} {row['p99_ms']:8.1f}", flush=True
        )
    missed = [f"{row['route']}: found {row['found']:.1%}" for row in rows if row["found"] < 1]
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "missed": missed}, indent=1) + "\n")
    for line in missed:
        print("MISSED " + line)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
