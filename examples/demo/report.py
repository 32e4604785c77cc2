"""Makes the report: figures per site, the kills in words, the checks and the verdict."""

import base64
import json
import os
import platform
import statistics
import time
from typing import Any

from edge_agent.domain import Domain
from edge_agent.errors import EdgeError
from edge_agent.frame import UP, open_frame
from edge_agent.version import __version__
from examples.demo import audit
from examples.demo.director import Director
from examples.demo.loop import Loop
from examples.demo.routing import Routing
from examples.demo.world import World

NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven"]

NOT_PROVEN = [
    "Power cuts. SIGKILL leaves what the kernel holds intact, so this run cannot show that "
    "fsync is called where it must be. The journal's own tests do: they cut a simulated flash "
    "at every single write.",
    "Bad radio. Everything ran over loopback; loss, reordering and half-open connections are "
    "tested in memory, with the same machines.",
    "Small boards. The agents here ran on CPython.",
    "A hostile network. The embedded broker is for demos: on loopback, with passwords, without "
    "TLS.",
    "That the model is right about you. Its accuracy is that of a few people with one kind of "
    "watch, and windows of one recording resemble each other.",
]


def as_json(record: Any, frame_agent: bytes, domain: Domain) -> bytes:
    """The record as somebody would send it without this project: compact JSON.

    Names instead of numbers, byte strings in base64, nothing signed. That flatters JSON:
    the vector as a list of numbers would take about 130 bytes more.
    """
    outcome = record.outcome

    def text(data: bytes) -> str:
        return base64.b64encode(data).decode()

    fields: dict[str, Any] = {
        "agent": frame_agent.hex(),
        "journal": record.journal.hex(),
        "seq": record.seq,
        "boot": record.boot,
        "uptime_ms": record.uptime_ms,
        "domain": record.domain_id.hex(),
        "vector": text(outcome.vector or b""),
        "label": domain.labels[outcome.label],
        "confidence": outcome.confidence,
    }
    if record.utc_s:
        fields["utc_s"] = record.utc_s
    if outcome.model:
        fields["model"] = outcome.model.hex()
    if record.fingerprint:
        fields["fingerprint"] = text(record.fingerprint)
    if outcome.tags:
        fields["tags"] = [domain.tags[tag] for tag in outcome.tags]
    return json.dumps(fields, separators=(",", ":")).encode()


def build(
    world: World,
    director: Director,
    options: dict[str, Any],
    routing: "Routing | None" = None,
    loop: "Loop | None" = None,
) -> dict[str, Any]:
    """The report as a dictionary. Opens every frame of the database once more."""
    watch = director.watch
    ledgers = {m.number: m.lines for m in world.members}
    sites = [audit.Site(m.number, m.agent, m.windows) for m in world.members]
    labels = world.domain.labels
    figures, matrix = audit.judge(sites, ledgers, watch.rows, len(labels))

    sizes: dict[int, list[int]] = {m.number: [] for m in world.members}
    owner = {m.agent: m.number for m in world.members}
    unreadable = 0
    for row in watch.rows:
        try:
            opened = open_frame(row.frame, world.keyring, UP, bytes.fromhex(row.agent))
            sizes[owner[row.agent]].append(len(as_json(opened.message, opened.agent, world.domain)))
        except (ValueError, LookupError, TypeError, EdgeError):
            unreadable += 1

    rows = []
    killed = {kill.get("site") for kill in director.kills}
    for member in world.members:
        one = figures[member.number]
        rows.append(
            {
                "site": member.name,
                "agent": member.agent,
                "killed": member.number in killed,
                "readings": world.readings(member),
                **one,
                "frame_bytes": one["frame_bytes"] / max(one["delivered"], 1),
                "json_bytes": statistics.fmean(sizes[member.number] or [0]),
                "raw_bytes": world.raw_bytes,
                "accuracy": one["correct"] / max(one["judged"], 1),
                "from_journal": sum(line.found == "journal" for line in member.lines),
            }
        )
    totals = _totals(rows, figures, [size for part in sizes.values() for size in part])
    totals["raw_bytes"] = world.raw_bytes
    kills = [_kill(kill, director) for kill in director.kills]
    checks = _checks(totals, kills, unreadable, director, options)
    if routing is not None:
        checks += routing.checks()
    if loop is not None:
        checks += loop.checks()
    passed = all(check["ok"] for check in checks)
    return {
        "report": 1,
        "verdict": "pass" if passed else "fail",
        "exit": 0 if passed else 1,
        "headline": _headline(world, passed, totals, kills, checks),
        "summary": _summary(world, totals, kills, passed),
        "run": {
            "started_utc": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(world.started)),
            "seconds": time.time() - world.started,
            "replay_seconds": watch.now(),
            "speed": world.speed,
            "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
            "versions": f"Python {platform.python_version()}, agent {__version__}",
            "model": world.model_id.hex(),
            "domain": world.domain.id.hex(),
            "options": options,
        },
        "totals": totals,
        "sites": rows,
        "kills": kills,
        "gateway": world.counters(),
        "routing": routing.result() if routing is not None else None,
        "loop": loop.result() if loop is not None else None,
        "timeline": watch.timeline(0.5),
        "confusion": {"labels": list(labels), "matrix": matrix},
        "checks": checks,
        "not_proven": NOT_PROVEN,
        "notes": {
            "accuracy": "The model was trained on persons 1-3 of the data set only; it never saw "
            "the people above. Readings are samples of six numbers each.",
            "bytes": f"Frames carry an 8-byte MAC; JSON here has the same fields, byte strings in "
            f"base64, and nothing to prove who sent it. Windows overlap: a new outcome needs "
            f"{world.new_bytes:,} new bytes of raw data, not {world.raw_bytes:,}. MQTT headers and "
            f"repeats after a kill are not counted.",
        },
    }


def _totals(
    rows: list[dict[str, Any]], figures: dict[int, dict[str, Any]], sizes: list[int]
) -> dict[str, Any]:
    names = "readings windows outcomes delivered lost duplicates unexplained skipped judged correct"
    totals: dict[str, Any] = {name: sum(row[name] for row in rows) for name in names.split()}
    totals["from_journal"] = sum(row["from_journal"] for row in rows)
    octets = sum(one["frame_bytes"] for one in figures.values())
    totals["frame_bytes"] = octets / max(totals["delivered"], 1)
    totals["json_bytes"] = statistics.fmean(sizes or [0])
    totals["accuracy"] = totals["correct"] / max(totals["judged"], 1)
    return totals


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def _part(count: int, whole: int) -> str:
    """How many of `whole`, in words where that reads better."""
    if count == whole:
        return "all of them" if whole != 1 else "it"
    return f"{count} of them" if count else "none of them"


def _kill(kill: dict[str, Any], director: Director) -> dict[str, Any]:
    """One kill for the report: figures, and two or three sentences about them."""
    what, at, back = kill["what"], kill["at"], kill["back"]
    out = {key: value for key, value in kill.items() if key != "victims"}
    count = len(kill["victims"])
    out["in_flight"] = count
    out["title"] = f"The {what}" if kill.get("site") is None else what.capitalize()
    if at is None:
        out.update(at=0.0, back=0.0)
        out["story"] = ["The replay ended before there was a moment worth killing at."]
        return out
    down = f"{back - at:.1f} s" if back is not None else "the rest of the run"
    story = []
    if kill.get("site") is not None:
        member = next(m for m in director.world.members if m.number == kill["site"])
        resumed = member.said.get("resumed")
        completed = member.said.get("completed", 0)
        story.append(
            f"{count} durable records without an answer (the gateway had been paused for "
            f"{kill['paused_s']:.1f} s); {kill['in_ram']} more windows were in RAM only and died "
            "with the process."
        )
        story.append(
            f"Started again after {down} and resumed at window {resumed}"
            + (f"; {completed} ledger lines completed from its journal." if completed else ".")
            + f" Of the {count}, {count - kill['again']} had arrived meanwhile."
        )
    elif what == "broker":
        story.append(
            f"{count} records in flight, {_part(kill['acknowledged'], count)} acknowledged by the "
            "broker: a client that trusts a PUBACK would have thrown them away."
        )
        if kill["paused_s"]:
            story.append(
                f"The gateway had been paused for {kill['paused_s']:.1f} s, so that the broker had "
                f"something to lose. It still took what had reached its socket; {kill['again']} "
                "had to be sent again."
            )
        story.append(f"Started again, empty, after {down}.")
    else:
        if count:
            broker = _part(kill["acknowledged"], count)
            story.append(f"{count} records in flight, {broker} with the broker, none committed.")
        else:
            story.append("Stopped between two steps of a batch; nothing else was in flight.")
        story.append(f"Started again after {down} on the same database.")
    if kill["recovered"] is None:
        story.append("Not all of them reached the database.")
    elif count:
        story.append(
            f"The last of them was in the database {kill['recovered'] - at:.1f} s after the kill."
        )
    out["back"] = back if back is not None else director.watch.now()
    out["story"] = story
    return out


def _checks(
    totals: dict[str, Any],
    kills: list[dict[str, Any]],
    unreadable: int,
    director: Director,
    options: dict[str, Any],
) -> list[dict[str, Any]]:
    """Every one must hold for exit 0."""

    def check(ok: bool, text: str, detail: str = "") -> dict[str, Any]:
        return {"ok": ok, "text": text, "detail": detail}

    again = director.world.counters().get("duplicates", 0)
    checks = [
        check(
            totals["lost"] == 0 and totals["outcomes"] > 0,
            "Nothing lost",
            f"{totals['outcomes']:,} outcomes in the ledgers, {totals['lost']:,} of them not in "
            "the database",
        ),
        check(
            totals["duplicates"] == 0,
            "Nothing twice",
            f"{totals['duplicates']:,} windows or frames are in the database more than once"
            + (f"; at least {again:,} repeats were recognised and dropped" if again else ""),
        ),
        check(
            totals["unexplained"] == 0 and unreadable == 0,
            "Nothing unexplained",
            f"{totals['unexplained']:,} frames that no ledger knows, {unreadable:,} that do not "
            "verify with their site's key",
        ),
        check(
            totals["skipped"] == 0,
            "Every window exactly once",
            f"{totals['windows']:,} windows replayed, {totals['skipped']:,} without an outcome",
        ),
    ]
    if kills:
        counts = ", ".join(f"{k['what']} {k['in_flight']}" for k in kills)
        checks.append(
            check(
                all(k["live"] for k in kills),
                "Every kill hit live traffic",
                f"records in flight: {counts}",
            )
        )
    checks.append(
        check(
            director.drained,
            "Everything arrived in time",
            f"the sites had nothing left to send after {_seconds(director.watch.moved)}",
        )
    )
    return checks


def _many(count: int, thing: str) -> str:
    word = NUMBERS[count] if count < len(NUMBERS) else str(count)
    return f"{word} {thing}{'' if count == 1 else 's'}"


def _headline(
    world: World,
    passed: bool,
    totals: dict[str, Any],
    kills: list[dict[str, Any]],
    checks: list[dict[str, Any]],
) -> str:
    if passed:
        sites = _many(len(world.members), "site").capitalize()
        found = ", found and learnt elsewhere" if len(world.hubs) > 1 else ""
        return f"{sites}, {_many(len(kills), 'kill')}, nothing lost, nothing twice{found}"
    wrong = []
    if totals["lost"]:
        wrong.append(f"{totals['lost']:,} lost")
    if totals["duplicates"]:
        wrong.append(f"{totals['duplicates']:,} there twice")
    if totals["unexplained"]:
        wrong.append(f"{totals['unexplained']:,} unexplained")
    if not wrong:
        wrong = ["not so: " + check["text"].lower() for check in checks if not check["ok"]]
    return "Failed: " + ", ".join(wrong)


def _summary(
    world: World, totals: dict[str, Any], kills: list[dict[str, Any]], passed: bool
) -> str:
    minutes = sum(len(m.windows) for m in world.members) * world.hop_s / 60
    count = len(world.members)
    people = "one person" if count == 1 else "each one person"
    text = (
        f"{_many(count, 'site').capitalize()}, {people} with a motion sensor, replayed "
        f"{minutes:.0f} minutes of recordings through a real model, {world.speed:.0f} times as "
        "fast as they were made. "
    )
    if kills:
        names = ["the " + k["what"] if k.get("site") is None else k["what"] for k in kills]
        listed = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
        text += f"On the way {listed} {'were' if len(names) > 1 else 'was'} killed with SIGKILL. "
    once = "very outcome that a site had committed is in its gateway's database exactly once"
    if passed:
        return text + "E" + once + "."
    if any(totals[name] for name in ("lost", "duplicates", "unexplained", "skipped")):
        return text + "Not e" + once + "."
    return text + "E" + once + ", but the run proves less than it should: see the checks."
