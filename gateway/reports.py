"""What people ask a gateway's database: devices, status, export. Read-only.

Works beside a running gateway. Times are repaired on the way out (timebase), so an
export made later can know better than an earlier one.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO

from edge_agent.frame import outcome_id
from gateway import ca
from gateway.config import Domains, GatewayConfig
from gateway.keys import Registry
from gateway.ranges import RangeSet
from gateway.store import Store
from gateway.timebase import Boot, repair

FIELDS = (
    "id", "device", "agent", "journal", "seq", "time", "utc_ms", "uncertainty_ms",
    "time_source", "arrival_ms", "boot", "uptime_ms", "device_utc_s", "domain", "label",
    "label_name", "confidence", "result", "result_name", "judged_result", "judged_label",
    "outcome",
)  # fmt: skip


def iso(ms: "int | None") -> "str | None":
    """Milliseconds of UTC as text, None for None."""
    if not ms:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


def name_of(names: "Sequence[str] | None", number: "int | None") -> "str | None":
    """The name a domain has for a number; None when there is none (any more, or yet)."""
    if not names or number is None or number >= len(names):
        return None
    return names[number]


def running(config: GatewayConfig) -> dict[str, Any]:
    """What the gateway of this folder last wrote about itself; {} when it never ran."""
    path = config.folder / "status.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    found["alive"] = Path(f"/proc/{found.get('pid', 0)}").exists()
    return dict(found)


def broker_refusals(config: GatewayConfig) -> "dict[str, Any] | None":
    """What `edge-gateway mosquitto` counted; None when it never ran here."""
    try:
        found = json.loads((config.folder / "broker.json").read_text())
    except (OSError, ValueError):
        return None
    return dict(found)


def devices(config: GatewayConfig, store: Store, registry: Registry) -> list[dict[str, Any]]:
    """One entry a device: identity, keys, what is held, what it said last."""
    news = running(config)
    online = news.get("online", {}) if news.get("alive") else {}
    streams = store.stream_reports()
    counts = store.label_counts()
    domains = Domains(config.domains)
    found = []
    for device in registry.devices():
        agent = device.agent.hex()
        mine = [s for s in streams if s["device"] == device.id]
        newest = max(mine, key=lambda s: s["hello_ms"], default=None)
        hello = json.loads(newest["hello"]) if newest else {}
        found.append(
            {
                "name": device.name,
                "agent": agent,
                "generation": device.generation,
                "generations": store.generations(device.id),
                "belongs_here": device.gateway == config.gateway,
                "revoked": iso(device.revoked_ms),
                "enrolled": iso(device.enrolled_ms),
                "online": online.get(agent),
                "last_seen": iso(max((max(s["last_ms"], s["hello_ms"]) for s in mine), default=0)),
                "outcomes": sum(n for row in mine for *_, n in counts.get(row["id"], [])),
                "labels": _labels(domains, [c for s in mine for c in counts.get(s["id"], [])]),
                "duplicates": sum(s["duplicates"] for s in mine),
                "conflicts": sum(s["conflicts"] for s in mine),
                "forks": sum(s["forks"] for s in mine),
                "lost_by_restore": sum(RangeSet.parse(s["lost"]).count() for s in mine),
                "refused": sum(RangeSet.parse(s["refused"]).count() for s in mine),
                "pending": hello.get("pending"),
                "dropped": hello.get("dropped"),
                "model": hello.get("model"),
                "version": hello.get("version"),
                "cfg_version": hello.get("cfg_version"),
                "journals": [
                    {
                        "journal": s["journal"].hex(),
                        "floor": s["floor"],
                        "next_seq": s["next_seq"],
                        "held": s["held"],
                        "refused": s["refused"],
                        "gone": s["gone"],
                        "lost_by_restore": s["lost"],
                    }
                    for s in mine
                ],
            }
        )
    return found


def _labels(domains: Domains, counts: list[tuple[bytes | None, int, int]]) -> dict[str, int]:
    """{label name, or its number where no domain file names it: outcomes}."""
    found: dict[str, int] = {}
    for domain_id, label, count in counts:
        domain = domains.get(domain_id or b"")
        name = name_of(domain.labels if domain else None, label) or str(label)
        found[name] = found.get(name, 0) + count
    return dict(sorted(found.items()))


def status(config: GatewayConfig, store: Store, registry: Registry) -> dict[str, Any]:
    """The gateway at a glance."""
    known = devices(config, store, registry)
    news = running(config)
    return {
        "gateway": config.gateway.hex(),
        "running": bool(news.get("alive")),
        "process": news or None,
        "database": {
            "path": str(config.database),
            "bytes": store.used_bytes(),
            "outcomes": sum(d["outcomes"] for d in known),
        },
        "devices": len(known),
        "online": sum(1 for d in known if d["online"]),
        "conflicts": sum(d["conflicts"] for d in known),
        "duplicates": sum(d["duplicates"] for d in known),
        "lost_by_restore": sum(d["lost_by_restore"] for d in known),
        "rejected": store.rejected_counts(),
        "broker": broker_refusals(config),
        "certificate_days": (ca.lasts(config.devices.cert) if config.devices is not None else None),
        "rejected_samples": store.rejected_samples(),
        "domains": sorted(
            f"{d.name} {d.id.hex()} version {d.version}" for d in Domains(config.domains).values()
        ),
    }


def outcomes(store: Store, domains: Domains, names: dict[bytes, str]) -> Iterator[dict[str, Any]]:
    """Every outcome, oldest first, with its repaired time and the names of its domain."""
    for row in store.timeline():
        boot = None
        if row["last_up"] is not None:
            boot = Boot(
                row["boot"], row["low"], row["high"], row["last_up"], bool(row["clocked"]),
                row["floor"], row["ceiling"],
            )  # fmt: skip
        when = repair(boot, row["uptime_ms"], row["utc_s"] or 0, row["arrival_ms"])
        domain = domains.get(row["domain"] or b"")
        identity = outcome_id(row["frame"])
        judged = store.judgement(identity)
        yield {
            "id": row["id"],
            "device": names.get(row["agent"], ""),
            "agent": row["agent"].hex(),
            "journal": row["journal"].hex(),
            "seq": row["seq"],
            "time": iso(when.utc_ms),
            "utc_ms": when.utc_ms,
            "uncertainty_ms": when.uncertainty_ms,
            "time_source": when.source,
            "arrival_ms": row["arrival_ms"],
            "boot": row["boot"],
            "uptime_ms": row["uptime_ms"],
            "device_utc_s": row["utc_s"],
            "domain": domain.name if domain else (row["domain"] or b"").hex(),
            "label": row["label"],
            "label_name": name_of(domain.labels if domain else None, row["label"]),
            "confidence": row["confidence"],
            "result": row["result"],
            "result_name": name_of(domain.results if domain else None, row["result"]),
            "judged_result": judged[0] if judged else None,
            "judged_label": judged[1] if judged else None,
            "outcome": identity.hex(),
            "frame": row["frame"].hex(),
            "frame_hash": sha256(row["frame"]).hexdigest(),
        }


def export(rows: Iterator[dict[str, Any]], out: TextIO, form: str, frames: bool) -> int:
    """Write rows as "jsonl" or "csv"; returns how many. frames: with the bytes as hex."""
    names = FIELDS + (("frame_hash", "frame") if frames else ())
    writer = None
    count = 0
    for row in rows:
        kept = {name: row[name] for name in names}
        if form == "csv":
            if writer is None:
                writer = csv.DictWriter(out, names)
                writer.writeheader()
            writer.writerow(kept)
        else:
            out.write(json.dumps(kept) + "\n")
        count += 1
    return count
