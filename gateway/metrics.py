"""Counters of one gateway process, and the two forms in which others read them."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAMES = {
    "accepted": "outcomes committed",
    "bytes": "frame bytes committed",
    "duplicates": "frames that were already held",
    "conflicts": "frames whose identity was held with other bytes",
    "rejected": "frames refused",
    "hellos": "hellos answered",
    "forks": "hellos that went back: a copied or restored device",
    "lost_by_restore": "records acknowledged by a database that is no longer there",
    "commits": "transactions on disk",
    "commit_failures": "transactions that failed; nothing of them was acknowledged",
    "connects": "connections to the broker",
    "broker_failures": "attempts to reach the broker that failed",
    "broker_untrusted": "brokers refused for their certificate",
    "acks": "acknowledgements sent to devices",
    "mail_sent": "boxes sent to mailboxes of devices, repeats included",
    "mail_taken": "items that devices said they have taken",
    "mail_questions": "times a device was asked where its mailbox stands",
    "mail_failures": "rounds with mail that failed: the file was locked, damaged or full",
    "mailboxes_set_aside": "damaged mailbox files set aside",
    "judgements": "judgements by people that were committed",
    "judgements_refused": "judgements by people that could not be understood",
}


class Counters:
    """Numbers that only grow, and a few that say how things are now."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = dict.fromkeys(NAMES, 0)
        self.gauges: dict[str, float] = {}
        self.notes: dict[str, str] = {}  # what is wrong now, in words
        self.started = time.time()

    def add(self, counts: Mapping[str, int]) -> None:
        mine = self.counts
        for name, count in counts.items():
            mine[name] = mine.get(name, 0) + count

    def as_dict(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "uptime_s": round(time.time() - self.started, 1),
            "counts": dict(sorted(self.counts.items())),
            "gauges": dict(sorted(self.gauges.items())),
            "notes": dict(sorted(self.notes.items())),
        }

    def prometheus(self) -> str:
        """The text exposition format."""
        lines = []
        for name, value in sorted(self.counts.items()):
            metric = f"edge_gateway_{name}_total"
            if name.startswith("rejected_"):
                reason = name[len("rejected_") :].replace("_", "-")
                lines.append(f'edge_gateway_rejected_by_reason_total{{reason="{reason}"}} {value}')
                continue
            if name in NAMES:
                lines.append(f"# HELP {metric} {NAMES[name]}")
            lines.append(f"# TYPE {metric} counter")
            lines.append(f"{metric} {value}")
        for name, level in sorted(self.gauges.items()):
            lines.append(f"# TYPE edge_gateway_{name} gauge")
            lines.append(f"edge_gateway_{name} {level:g}")
        return "\n".join(lines) + "\n"

    def write(self, folder: Path, online: Mapping[str, bool]) -> None:
        """metrics.prom and status.json, replaced in one step. Not synced: they are news."""
        status = dict(self.as_dict(), online=dict(sorted(online.items())))
        for name, text in (
            ("metrics.prom", self.prometheus()),
            ("status.json", json.dumps(status, indent=1) + "\n"),
        ):
            part = folder / f".{name}.part"
            part.write_text(text)
            part.replace(folder / name)
