"""`edge-agent bundle` and `edge-agent flash`: arguments in, words and a summary out."""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from edge_agent.errors import ConfigError, EdgeError
from edge_agent.tools import firmware, flash, freight, ports, preflight
from edge_agent.tools.board_facts import Facts, check_board, check_owner, look
from edge_agent.tools.bundle import ARCHITECTURES
from edge_agent.tools.repl import NoRepl, Repl

Show = Callable[[argparse.Namespace, "dict[str, Any]", "list[str]"], None]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_bundle(args: argparse.Namespace, show: Show) -> int:
    arch = args.arch or freight.about(args.board)["arch"]
    made = freight.make_bundle(args.board, arch, args.out, args.main)
    sizes = [entry["size"] for entry in made["files"].values()]
    found = {
        "bundle": args.out,
        "board": args.board,
        "arch": arch,
        "kernels": made["kernels"],
        "version": made["version"],
        "files": len(sizes),
        "bytes": sum(sizes),
    }
    show(args, found, [f"{args.out}: {len(sizes)} files, {sum(sizes)} bytes", *_kernels(found)])
    return 0


def _kernels(found: "dict[str, Any]") -> "list[str]":
    if found["kernels"]:
        return [f"kernels: native, {found['kernels']}"]
    return [f"kernels: viper; no native ones were built for {found['arch']}"]


def run_flash(args: argparse.Namespace, show: Show) -> int:
    started = time.monotonic()
    about = freight.about(args.board)
    site = freight.find_site(args.site)
    fields = freight.overlay(site, args.model, args.domain, args.sensor)
    site.config.model, site.config.domain = fields["model"], fields["domain"]
    site.model("own")  # refuses what the board would refuse
    device, name = ports.find(args.port, args.board)
    say(f"port {device}" + (f", {name}" if name else ""))
    if args.firmware:
        firmware.write(args.board, args.firmware, device, say)
    repl = _open(args, device)
    try:
        found = _bring(args, about, fields, repl, started)
    except BaseException:
        with contextlib.suppress(EdgeError):
            repl.start()  # whatever agent is there goes on
        raise
    finally:
        repl.close()
    show(args, found, _lines(found))
    return 0


def _open(args: argparse.Namespace, device: str) -> Repl:
    """The raw REPL; when there is none, how to bring MicroPython."""
    end = time.monotonic() + (20 if args.firmware else 0)
    while True:
        try:
            return Repl(device, args.baud)
        except NoRepl as error:
            if time.monotonic() < end:
                time.sleep(1)
                continue
            if args.firmware:
                raise NoRepl(
                    "the firmware was written, and nothing here answers as MicroPython does",
                    device,
                    "Press the reset button and run the same without --firmware",
                )
            raise NoRepl(
                error.what,
                error.where,
                error.fix + ". By hand:\n  " + firmware.command_line(args.board, device),
            )


def _bring(
    args: argparse.Namespace,
    about: "dict[str, Any]",
    fields: "dict[str, Any]",
    repl: Repl,
    started: float,
) -> "dict[str, Any]":
    facts = look(repl)
    check_board(facts, args.board, about, repl.device)
    check_owner(facts, fields, repl.device)
    say(f"{facts.machine}, MicroPython {'.'.join(map(str, facts.version))}, {facts.arch}")
    load = _load(args, fields, facts)
    _check_model(args, fields, facts)
    todo = flash.plan(repl, facts, load)
    found: dict[str, Any] = {
        "agent": fields["agent"],
        "arch": facts.arch,
        "board": args.board,
        "found": todo.found,
        "id": load.id,
        "kept": todo.kept,
        "kernels": "native" if load.kernels else "viper",
        "machine": facts.machine,
        "micropython": ".".join(map(str, facts.version)),
        "place": "romfs" if load.romfs else "files",
        "port": repl.device,
        "send": sum(map(len, todo.send.values()))
        + len({0, *todo.rom}) * facts.rom_block * bool(todo.rom),
        "slot": todo.slot,
        "version": load.version,
    }
    if args.dry_run:
        repl.start()
        return {**found, "dry_run": True, "would_send": sorted(todo.send), "rom": todo.rom}
    say(f"found {todo.found}; {'nothing' if todo.done else found['send']} to send")
    with _progress(found["send"]) as sent:
        found["verified"] = flash.flash(repl, facts, load, todo, sent, _step(args))
    found["flash_seconds"] = round(time.monotonic() - started, 1)
    if args.wait:
        up = flash.wait(repl, args.wait, say)
        found.update(acked=up.acked, boot=up.ready.get("boot"), journal=up.ready.get("journal"))
        found.update(free=up.ready.get("free"), events=sorted(set(up.events)))
        found["first_ack_seconds"] = round(time.monotonic() - started, 1)
    else:
        repl.start()
    return found


def _load(args: argparse.Namespace, fields: "dict[str, Any]", facts: Facts) -> freight.Freight:
    if facts.arch not in ARCHITECTURES:
        raise ConfigError(f"architecture {facts.arch} is not supported", args.board)
    with tempfile.TemporaryDirectory() as folder:
        if args.bundle:
            path = Path(args.bundle)
            freight.check_bundle(path, args.board, facts.arch)
        else:
            path = Path(folder) / "bundle"
            say("compiling")
            freight.make_bundle(args.board, facts.arch, path, args.main)
        if args.place != "files":
            found = freight.load(args.board, fields, path, in_rom=True)
            if args.place == "romfs" or len(found.image) <= facts.rom:
                return found
        return freight.load(args.board, fields, path, in_rom=False)


def _check_model(args: argparse.Namespace, fields: "dict[str, Any]", facts: Facts) -> None:
    """ConfigError when the model does not fit the heap that this very board has."""
    report = preflight.preflight(fields["model"], args.board, heap=facts.free)
    if report["problems"]:
        raise ConfigError(
            "; ".join(report["problems"]), f"model {fields['model']}", "; ".join(report["change"])
        )


def _step(args: argparse.Namespace) -> "Callable[[str], None]":
    def step(name: str) -> None:
        if not sys.stderr.isatty():
            say(name)

    return step


@contextlib.contextmanager
def _progress(total: int) -> "Iterator[Callable[[int], None]]":
    with tqdm(
        total=total, unit="B", unit_scale=True, disable=not (total and sys.stderr.isatty())
    ) as bar:
        yield lambda n: (bar.update(n), None)[1]


def _lines(found: "dict[str, Any]") -> "list[str]":
    names = (
        "board", "machine", "micropython", "arch", "kernels", "place", "found", "version", "agent",
        "send", "kept", "verified", "journal", "boot", "free", "acked", "flash_seconds",
        "first_ack_seconds",
    )  # fmt: skip
    out = [f"  {name.replace('_', ' '):<18}{found[name]}" for name in names if name in found]
    if found.get("dry_run"):
        return ["Dry run; nothing was changed.", *out]
    if "acked" in found:
        return [f"Outcomes of agent {found['agent']} are in its gateway's custody.", *out]
    return ["Flashed and started.", *out]
