"""`edge-gateway learner`: what was learnt for devices here, from whom, and how it does."""

import argparse
import json
from datetime import UTC, datetime
from typing import Any

from gateway.cli_routing import call


def do_learner(options: argparse.Namespace) -> int:
    found = call(options.dir, "GET", "/status", None, 10.0)["learner"]
    print(json.dumps(found, indent=1) if options.json else learner_text(found))
    return 0


def learner_text(found: dict[str, Any]) -> str:
    """For people."""
    if not found["on"]:
        return "off: see routing.learner in gateway.json"
    budget, takers = found["budget"], found["devices that take mail"]
    lines = [
        f"{takers} devices take mail; "
        f"{budget['spent today']:,} of {budget['bytes a day']:,} bytes fetched today"
    ]
    if not takers:
        lines.append('no device takes mail: write "peers": {} into a device\'s configuration')
    for group in found["groups"]:
        lines += _group(group)
    return "\n".join(lines)


def _group(group: dict[str, Any]) -> list[str]:
    lines = [
        "",
        f"{group['domain']}, model {group['model'] or 'not named'}: "
        f"{group['local']} outcomes of its own, {group['judged']} judged, "
        f"{group['fetched']} of others",
    ]
    for head in group["heads"]:
        at = datetime.fromtimestamp(head["made_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        lines.append(f"  head {head['version']:<4} {at}  {head['state']}: {head['why']}")
        lines.append(
            f"    held back: {head['right'] * 100:.1f} % right of {head['judged']} judged, "
            f"before {head['right before'] * 100:.1f} %" + _new(head)
        )
        live = head["live"]
        if live["judged"]:
            lines.append(
                f"    since: {live['right']} of {live['judged']} right; "
                f"only with it {live['only with it right']}, "
                f"only without it {live['only alone right']}"
            )
    if not group["heads"]:
        lines.append("  no head yet")
    for name, device in group["devices"].items():
        waiting = f", {device['queued']} waiting" if device["queued"] is not None else ""
        has = "its model's own" if device["in force"] is None else device["in force"]
        lines.append(f"  device {name}: head {has}{waiting}")
    for name, origin in group["origins"].items():
        state = "QUARANTINED" if origin["quarantined"] else f"weight {origin['weight']}"
        lines.append(
            f"  origin {name}: {state}; agrees in {origin['agreed'] * 100:.0f} % of "
            f"{origin['judged']} (our own in {origin['expected'] * 100:.0f} %), "
            f"{origin['doubted']} doubted"
        )
    return lines


def _new(head: dict[str, Any]) -> str:
    if head["recall of new labels"] is None:
        return ""
    return (
        f"; of labels that are new here {head['recall of new labels'] * 100:.0f} %, "
        f"before {head['recall before'] * 100:.0f} %"
    )
