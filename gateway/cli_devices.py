"""`edge-gateway enrol`, `rotate`, `revoke`, `claims`: which devices belong here.

A device gets its key in one of two ways: in a file that somebody carries (`--out`), or by
a code that it redeems over the network (`--claim`). A code is shown on a terminal, or
written to a file of mode 0600 that `--out` names; never on a pipe, which may be a log.
"""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from edge_agent.cpython.claim_code import SECRET_BYTES, ClaimCode
from edge_agent.errors import ConfigError, StoreError
from gateway import ca, claims, enrol
from gateway.claims import Claims
from gateway.config import GatewayConfig
from gateway.files import write_private
from gateway.keys import Registry
from gateway.mailbox import Mailbox
from gateway.opening import now_ms, opened
from gateway.store import Store

CLAIMS = "claims.db"


def _show(options: argparse.Namespace, found: Any, text: str) -> int:
    print(json.dumps(found, indent=1) if options.json else text)
    return 0


def _extra(options: argparse.Namespace) -> dict[str, Any]:
    if options.template is None:
        return {}
    try:
        found = json.loads(options.template.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(str(error), str(options.template), "Give a JSON file")
    if not isinstance(found, dict):
        raise ConfigError("not a JSON object", str(options.template), "It starts with {")
    return found


def do_enrol(options: argparse.Namespace) -> int:
    extra = _extra(options)
    agent = enrol.parse_agent(options.agent)
    with opened(options.dir) as (config, store, registry):
        if options.claim:
            claims.check_new(registry, options.name, agent)
            return _claim(options, config, store, registry, (agent, 1), extra)
        device = enrol.enrol(
            config, registry, options.name, agent, _out(options), now_ms(), options.host, extra,
            options.pin,
        )  # fmt: skip
    found = {"name": device.name, "agent": device.agent.hex(), "config": str(options.out)}
    return _show(
        options,
        found,
        f"{device.name} is agent {device.agent.hex()}\n"
        f"{options.out} holds its key: move it to the device, keep no copy",
    )


def do_rotate(options: argparse.Namespace) -> int:
    extra = _extra(options)
    with opened(options.dir) as (config, store, registry):
        device = registry.find(options.name)
        if options.claim:
            if device.revoked_ms is not None:
                raise StoreError("is revoked", device.agent.hex(), "Enrol it under a new id")
            begins = (device.agent, device.generation + 1)
            return _claim(options, config, store, registry, begins, extra)
        device = enrol.rotate(
            config, registry, device, _out(options), now_ms(), options.host, extra, options.pin
        )
    found = {
        "name": device.name,
        "agent": device.agent.hex(),
        "generation": device.generation,
        "config": str(options.out),
    }
    return _show(options, found, f"{device.name}: generation {device.generation} in {options.out}")


def do_revoke(options: argparse.Namespace) -> int:
    with opened(options.dir) as (config, _, registry):
        device = registry.find(options.name)
        enrol.revoke(config, registry, device, now_ms())
        box = config.folder / "mailbox.db"
        if box.exists():
            with contextlib.closing(Mailbox(box)) as mailbox:
                mailbox.forget(device.agent)
    found = {"name": device.name, "agent": device.agent.hex(), "revoked": True}
    return _show(options, found, f"{device.name} is revoked; what it sent before stays")


def do_claims(options: argparse.Namespace) -> int:
    config = GatewayConfig(options.dir)
    book = Claims(config.folder / CLAIMS)
    waiting = book.waiting(now_ms())
    if options.cancel:
        mine = [claim for claim in waiting if claim.name == options.cancel]
        if not mine:
            raise ConfigError(f"no code for {options.cancel!r} is open", "--cancel", "See: claims")
        book.cancel(mine[0].id)
        waiting.remove(mine[0])
    found = [
        {
            "name": claim.name,
            "agent": claim.agent.hex(),
            "generation": claim.generation,
            "seconds_left": (claim.expires_ms - now_ms()) // 1000,
        }
        for claim in waiting
    ]
    lines = [f"{c['name']:20} {c['agent']} {c['seconds_left']} s left" for c in found]
    return _show(options, found, "\n".join(lines or ["no code is open"]))


def _out(options: argparse.Namespace) -> Path:
    out: Path | None = options.out
    if out is None:
        raise ConfigError("missing", "--out", "Name the device's file, or give --claim")
    return out


# -- codes --------------------------------------------------------------------------------


def _claim(
    options: argparse.Namespace,
    config: GatewayConfig,
    store: Store,
    registry: Registry,
    begins: "tuple[bytes, int]",
    extra: dict[str, Any],
) -> int:
    """Show a code and wait until it is redeemed. Exit status 1 when it was not."""
    try:
        from gateway.claim_server import wait_for
    except ImportError as error:
        raise StoreError(
            f"{error.name} is not installed", "--claim", "pip install 'edge-agent[gateway]'"
        )
    if config.devices is None:
        raise ConfigError(
            "devices do not use TLS here", str(config.path), "Run: edge-gateway tls --make"
        )
    if options.out is None and not sys.stdout.isatty():
        raise ConfigError(
            "a code is a secret, and this is no terminal",
            "--claim",
            "Name a file for it with --out",
        )
    if options.out is not None and options.out.exists():
        raise StoreError("is there already", str(options.out), "Name another file", 17)
    agent, generation = begins
    name = options.name if generation == 1 else registry.find(options.name).name
    if options.host:
        extra = {**extra, "broker": {**extra.get("broker", {}), "host": options.host}}
    secret = os.urandom(SECRET_BYTES)
    code = ClaimCode(
        options.host or config.devices.host,
        config.devices.claim_port,
        secret,
        ca.pin(ca.load(config.devices.ca)),
    )
    book = Claims(config.folder / CLAIMS)
    made, expires = now_ms(), now_ms() + options.minutes * 60_000
    mine = book.make(secret, name, agent, generation, extra, options.pin, made, expires)
    try:
        if options.out is not None:
            write_private(options.out, code.text() + "\n", exclusive=True)
            if not options.json:
                print(f"code for {name} in {options.out}", flush=True)
        else:
            print(picture(code) + f"\n{code.text()}\n", flush=True)
            print(f"On the device, within {options.minutes} minutes: edge-agent claim", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            mine = wait_for(config, store, registry, book, mine)
    finally:
        if mine.nonce is None:
            book.cancel(mine.id)
        if options.out is not None:
            options.out.unlink(missing_ok=True)
    taken = mine.nonce is not None
    found = {"name": name, "agent": agent.hex(), "generation": generation, "claimed": taken}
    text = f"{name} is agent {agent.hex()}" if generation == 1 else f"{name}: generation "
    text += "" if generation == 1 else str(generation)
    _show(options, found, text if taken else f"nobody took the code for {name}; it is void")
    return 0 if taken else 1


def picture(code: ClaimCode) -> str:
    """The code as a QR code of half-height blocks; a line instead where segno is missing."""
    try:
        import segno
    except ImportError:
        return "(for a QR code: pip install 'edge-agent[gateway]')"
    import io

    out = io.StringIO()
    segno.make(code.qr_text(), error="l", micro=False).terminal(out, compact=True)
    return out.getvalue().rstrip("\n")


def add_device_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Put these commands into the parser of edge-gateway."""

    def command(name: str, do: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.set_defaults(do=do)
        return sub

    for name, do, text in (
        ("enrol", do_enrol, "take a device in: write its configuration, or show a code"),
        ("rotate", do_rotate, "give a device a new key"),
    ):
        sub = command(name, do, text)
        sub.add_argument("name", help="name of the device")
        sub.add_argument(
            "--out", type=Path, metavar="FILE", help="device.json; with --claim, the code"
        )
        sub.add_argument("--host", default="", help="broker as the device sees it")
        sub.add_argument(
            "--template", type=Path, metavar="FILE", help="JSON with further fields of device.json"
        )
        sub.add_argument(
            "--pin", action="store_true", help="trust the certificate itself: needs no clock"
        )
        sub.add_argument(
            "--claim", action="store_true", help="show a one-time code and wait for the device"
        )
        sub.add_argument(
            "--minutes", type=_minutes, default=15, metavar="N", help="a code lives (default 15)"
        )
        if name == "enrol":
            sub.add_argument("--agent", default="", metavar="HEX", help="id (default: random)")

    sub = command("revoke", do_revoke, "believe a device no more")
    sub.add_argument("name", help="name or agent id")

    sub = command("claims", do_claims, "list the codes that are open")
    sub.add_argument("--cancel", default="", metavar="NAME", help="end the code of that name")


def _minutes(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1440:
        raise argparse.ArgumentTypeError("must be 1 to 1440")
    return value
