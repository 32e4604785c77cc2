"""What a frame costs: microseconds beside plain cbor2 + hmac, bytes beside JSON.

    python benchmarks/frame.py [--quick] [--json FILE] [--check]

Both sides do the same job in the same run: build the COSE_Mac0 of one outcome, and
verify and read it back into a message. The cbor2 side is what one would write with that
library and hmac, without our checks (deterministic encoding, ranges, topic). Times are
process CPU time, the median of many short rounds taken in turn, so that a busy machine
slows both sides alike.

--check exits 1 when encode+MAC is above 35 us or verify+decode above 30 us (the goals), or
a frame is longer than SPEC.md allows. It compares the lower quartile: CPU time, too, grows
when a neighbour uses the same core's caches, and a check must not depend on neighbours.
"""

import argparse
import hmac
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import msgpack

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "core")]

import golden  # noqa: E402

from edge_agent import cbor, cose, frame  # noqa: E402
from edge_agent.cpython.signer import HostCrypto  # noqa: E402

GOALS = {"encode+MAC": 35.0, "verify+decode": 30.0}
LIMITS = {
    "worst case": 250,
    "worst case encrypted": 264,
    "worst case small": 222,
    "worst case small encrypted": 222,
}
NAMES = {
    1: "journal", 2: "seq", 3: "boot", 4: "uptime_ms", 5: "utc_s", 6: "domain", 7: "model",
    8: "vector", 9: "fingerprint", 10: "label", 11: "confidence", 12: "tags", 13: "action",
    14: "result", 15: "parents", 16: "depth", 17: "head",
}  # fmt: skip


def measure(
    jobs: "dict[str, Callable[[], Any]]", rounds: int, loops: int
) -> "dict[str, dict[str, float]]":
    """Microseconds of CPU per call, median and lower quartile; the jobs take turns."""
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.process_time_ns()
            for _ in range(loops):
                job()
            taken[name].append((time.process_time_ns() - start) / loops / 1000)
    return {
        name: {
            "median": statistics.median(times),
            "quartile": statistics.quantiles(times, n=4)[0],
        }
        for name, times in taken.items()
    }


def plain_content(content: "dict[int, Any]", binary: bool) -> "dict[str, Any]":
    """The same content with readable names; byte strings as hex where there are none."""
    out: dict[str, Any] = {}
    for label, value in content.items():
        if label == 8 and not binary:
            value = [byte - 256 if byte > 127 else byte for byte in value]
        elif isinstance(value, bytes) and not binary:
            value = value.hex()
        elif label == 15 and not binary:
            value = [parent.hex() for parent in value]
        out[NAMES[label]] = value
    return out


def times(vectors: "dict[str, Any]", quick: bool) -> "dict[str, dict[str, dict[str, float]]]":
    keys = frame.DeviceKeys(
        HostCrypto(),
        bytes.fromhex(vectors["agent"]),
        bytes.fromhex(vectors["secret"]),
        vectors["generation"],
    )
    ring = frame.Keyring(keys)
    chosen = {v["name"]: v for v in vectors["frames"]}
    rounds, loops = (15, 100) if quick else (61, 400)
    result = {}
    for name in ("typical", "worst case"):
        record = golden.from_json(chosen[name]["message"])
        sealed = frame.seal(keys, record)
        hidden = frame.seal(keys, record, True)
        content = cbor.decode(cose.parse(sealed).payload)
        key = keys.key(frame.UP, False)
        header = {1: 4, 4: keys.agent + bytes([keys.generation]), 16: 65001}
        aad = cbor2.dumps(["qis", 1, 0, 1, keys.agent])

        def theirs_make(
            content: Any = content, key: bytes = key, header: Any = header, aad: bytes = aad
        ) -> bytes:
            protected = cbor2.dumps(header)
            payload = cbor2.dumps(content)  # already in order
            structure = cbor2.dumps(["MAC0", protected, aad, payload])
            tag = hmac.digest(key, structure, "sha256")[:8]
            return cbor2.dumps(cbor2.CBORTag(17, [protected, {}, payload, tag]))

        def theirs_read(sealed: bytes = sealed, key: bytes = key, aad: bytes = aad) -> Any:
            protected, _, payload, tag = cbor2.loads(sealed).value
            structure = cbor2.dumps(["MAC0", protected, aad, payload])
            if not hmac.compare_digest(hmac.digest(key, structure, "sha256")[:8], tag):
                raise ValueError
            return cbor2.loads(payload)

        # The same bytes on both sides, or the comparison means nothing.
        if theirs_make() != sealed or theirs_read() != content:
            raise SystemExit("the two sides do not do the same job")
        result[name] = measure(
            {
                "encode+MAC": lambda record=record: frame.seal(keys, record),
                "encode+MAC, cbor2": theirs_make,
                "verify+decode": lambda sealed=sealed: frame.open_frame(
                    sealed, ring, frame.UP, keys.agent
                ),
                "verify+decode, cbor2": theirs_read,
                "encode+encrypt": lambda record=record: frame.seal(keys, record, True),
                "decrypt+decode": lambda hidden=hidden: frame.open_frame(
                    hidden, ring, frame.UP, keys.agent
                ),
            },
            rounds,
            loops,
        )
    return result


def sizes(vectors: "dict[str, Any]") -> "dict[str, dict[str, int]]":
    """Bytes of the payload's content in other encodings; none of those is authenticated."""
    result = {}
    for vector in vectors["frames"]:
        if vector["kind"] != frame.OUTCOME or "encrypt" in vector["options"]:
            continue
        content = cbor.decode(bytes.fromhex(vector["payload"]))
        if not isinstance(content, dict) or 18 in content or 0 in content:
            continue
        text = json.dumps(plain_content(content, False), separators=(",", ":"))
        result[vector["name"]] = {
            "frame": vector["bytes"],
            "payload": len(vector["payload"]) // 2,
            "json": len(text),
            "msgpack, named": len(msgpack.packb(plain_content(content, True))),
            "msgpack, numbered": len(msgpack.packb(content)),
        }
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 below the goals")
    options = parser.parse_args()
    vectors = golden.load("frames")
    cost = times(vectors, options.quick)
    size = sizes(vectors)

    print("CPU time per frame, us, median (lower quartile)     ours        cbor2+hmac")
    for name, figures in cost.items():
        for job in ("encode+MAC", "verify+decode", "encode+encrypt", "decrypt+decode"):
            cells = [
                "%6.1f (%5.1f)" % (figures[side]["median"], figures[side]["quartile"])
                for side in (job, job + ", cbor2")
                if side in figures
            ]
            print("  %-40s %s" % (name + ", " + job, "   ".join(cells)))
    print()
    print("Bytes (frame: sealed; the rest: content alone)")
    print("  %-28s %6s %8s %6s %9s %9s" % ("", "frame", "payload", "JSON", "msgpack", "numbered"))
    for name, row in size.items():
        print("  %-28s %6d %8d %6d %9d %9d" % (name, *row.values()))

    missed = [
        "%s, %s: %.1f us, goal %.0f" % (name, job, figures[job]["quartile"], goal)
        for name, figures in cost.items()
        for job, goal in GOALS.items()
        if figures[job]["quartile"] > goal
    ]
    missed += [
        "%s: %d bytes, limit %d" % (name, vector["bytes"], LIMITS[name])
        for vector in vectors["frames"]
        for name in [vector["name"]]
        if name in LIMITS and vector["bytes"] > LIMITS[name]
    ]
    if options.json:
        content = {"us": cost, "bytes": size, "goals_us": GOALS, "missed": missed}
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n")
    for line in missed:
        print("MISSED " + line)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
