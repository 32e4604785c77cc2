"""`edge-gateway mailbox`, `explain` and `feedback`."""

import argparse
import json
from pathlib import Path
from typing import Any

from edge_agent.errors import ConfigError
from gateway.cli_routing import call
from gateway.explain import do_explain
from gateway.judge import outcome_of
from gateway.keys import Device
from gateway.mailbox import Mailbox
from gateway.opening import opened
from gateway.reports import iso

TYPES = {1: "row of a head", 2: "neighbour", 3: "clear"}


def do_mailbox(options: argparse.Namespace) -> int:
    """What waits for devices, and what they took."""
    with opened(options.dir) as (config, _, registry):
        path = config.folder / "mailbox.db"
        devices = [registry.find(options.device)] if options.device else registry.devices()
        found = boxes(path, devices) if path.exists() else []
        if options.device and found:
            found[0]["latest"] = latest(path, devices[0].agent)
    if options.json:
        print(json.dumps(found, indent=1))
    elif found:
        print("\n".join(mailbox_lines(found)))
    else:
        print("no device takes mail, and none has any")
    return 0


def boxes(path: Path, devices: "list[Device]") -> list[dict[str, Any]]:
    """One entry for each device that takes mail or has some."""
    mailbox = Mailbox(path)
    try:
        known = {box.agent: box for box in mailbox.boxes()}
        found = []
        for device in devices:
            box = known.get(device.agent)
            if box is None:
                continue
            waiting, head = mailbox.waiting(device.agent), mailbox.head(device.agent)
            found.append(
                {
                    "name": device.name,
                    "agent": device.agent.hex(),
                    "takes_mail": box.hello_ms > 0,
                    "taken": box.taken,
                    "waiting": waiting.items,
                    "bytes": waiting.size,
                    "under_way": waiting.under_way,
                    "head_queued": head.queued,
                    "head_sent": head.sent,
                    "head_in_force": head.in_force,
                    "head_since": iso(head.since_ms),
                    "last_hello": iso(box.hello_ms),
                    "counts": mailbox.counts(device.agent),
                }
            )
        return found
    finally:
        mailbox.close()


def latest(path: Path, agent: bytes) -> list[dict[str, Any]]:
    """What the device took last, newest first."""
    mailbox = Mailbox(path)
    try:
        return [
            {
                "number": one.number,
                "type": TYPES.get(one.type, str(one.type)),
                "head": one.head,
                "bytes": one.size,
                "put": iso(one.put_ms),
                "taken": iso(one.taken_ms),
            }
            for one in mailbox.taken(agent, 20)
        ]
    finally:
        mailbox.close()


def mailbox_lines(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"{'name':20} {'waiting':>7} {'bytes':>7} {'sent':>5} {'taken':>7}"
        "  head in force, sent, queued"
    ]
    for one in found:
        heads = ", ".join(
            "-" if one[name] is None else str(one[name])
            for name in ("head_in_force", "head_sent", "head_queued")
        )
        taken = "?" if one["taken"] is None else one["taken"]
        lines.append(
            f"{one['name']:20} {one['waiting']:7} {one['bytes']:7} {one['under_way']:5} "
            f"{taken:>7}  {heads}"
            + ("" if one["takes_mail"] else "   (has not said that it takes mail)")
        )
        if one["counts"]:
            lines.append(
                f"{'':20} " + ", ".join(f"{what} {n}" for what, n in sorted(one["counts"].items()))
            )
        for item in one.get("latest", ()):
            which = f" {item['head']}" if item["head"] is not None else ""
            lines.append(
                f"  {item['number']:6}  {item['type']}{which}, {item['bytes']} bytes, "
                f"put {item['put']}, known to be taken {item['taken']}"
            )
    return lines


def do_feedback(options: argparse.Namespace) -> int:
    """Say how an outcome turned out."""
    if options.access:
        return _access(options)
    if not options.outcome or not options.result:
        raise ConfigError("missing", "feedback", "Give OUTCOME and --result")
    body: dict[str, Any] = {
        "outcome": outcome_of(options.outcome).hex(),
        "result": _name_or_number(options.result),
    }
    if options.label:
        body["label"] = _name_or_number(options.label)
    found = call(options.dir, "POST", "/feedback", body, 10.0)
    text = "it waits until this gateway has that outcome"
    if found["state"] == "queued":
        text = f"noted: {found['result']}, {found['label']}"
    print(json.dumps(found) if options.json else text)
    return 0


def _name_or_number(text: str) -> "int | str":
    return int(text) if text.isdecimal() and len(text) < 6 else text


def _access(options: argparse.Namespace) -> int:
    """What a program needs to judge outcomes over MQTT."""
    with opened(options.dir) as (config, _, registry):
        found = {
            "host": config.host,
            "port": config.port,
            "user": config.operator,
            "password": registry.operator_password(),
            "topic": f"{config.root}/AGENT/judge",
            "payload": {"outcome": "32 hex digits", "result": "confirmed", "label": "optional"},
        }
    lines = [f"{name:9} {value}" for name, value in found.items() if name != "payload"]
    print(json.dumps(found, indent=1) if options.json else "\n".join(lines))
    return 0


def add_mail_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    def command(name: str, do: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.set_defaults(do=do)
        return sub

    sub = command("mailbox", do_mailbox, "what waits for devices, and what they took")
    sub.add_argument("device", nargs="?", default="", help="name or agent id (default: all)")

    sub = command("explain", do_explain, "why: the outcomes that an outcome was made from")
    sub.add_argument("outcome", metavar="OUTCOME", help="outcome id, 32 hex digits")
    sub.add_argument(
        "--without-peers", action="store_true", help="what the device would have decided alone"
    )

    sub = command("feedback", do_feedback, "say how an outcome turned out")
    sub.add_argument("outcome", nargs="?", default="", metavar="OUTCOME", help="its id")
    sub.add_argument("--result", default="", metavar="R", help="confirmed, corrected, ...")
    sub.add_argument("--label", default="", metavar="L", help="the true one, if another")
    sub.add_argument("--access", action="store_true", help="how a program does it over MQTT")
