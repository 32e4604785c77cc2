"""`edge-gateway`: set up, run and question a gateway.

Exit codes: 0 ok, 1 a verification failed, 2 usage, 3 environment.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_agent.cpython.notify import Notifier
from edge_agent.cpython.owner import become_owner
from edge_agent.errors import ConfigError, EdgeError, RemoteError, StoreError
from edge_agent.version import __version__
from gateway import broker, ca, enrol, reports
from gateway.cli_backup import add_backup_commands
from gateway.cli_devices import add_device_commands
from gateway.cli_mail import add_mail_commands
from gateway.cli_network import add_network_commands
from gateway.cli_routing import add_routing_commands, child_router
from gateway.cli_setup import add_setup_commands
from gateway.config import Domains
from gateway.custody import Custody
from gateway.mqtt import Bridge
from gateway.opening import opened
from gateway.retention import Retention
from gateway.rounds import Rounds
from gateway.supervise import Supervised
from gateway.train import add_domain_commands

OK, FAILED, USAGE, ENVIRONMENT = 0, 1, 2, 3

EPILOG = """
to try it out on this machine:
  edge-gateway init gw --domain motion.domain --port 1883
  edge-gateway -C gw broker &          (or: mosquitto -c gw/mosquitto/mosquitto.conf)
  edge-gateway -C gw run &
  edge-gateway -C gw enrol pump-3 --out pump-3.json
  edge-agent run --config pump-3.json

for good, with TLS and systemd (docs/deploy-pi.md):
  sudo edge-gateway init /var/lib/edge-gateway --tls --domain motion.domain
  sudo edge-gateway -C /var/lib/edge-gateway install
  sudo edge-gateway -C /var/lib/edge-gateway enrol pump-3 --claim

exit codes: 0 ok, 1 verification failed, 2 usage, 3 environment
"""


def main(arguments: "Sequence[str] | None" = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    try:
        if options.command not in ("init", "install"):
            become_owner(options.dir)
        return int(options.do(options))
    except RemoteError as error:
        return _fail(options, error, FAILED)
    except ConfigError as error:
        return _fail(options, error, USAGE)
    except EdgeError as error:
        return _fail(options, error, ENVIRONMENT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        # Root became the folder's owner, who may not write everywhere.
        what, where = error.strerror or str(error), str(error.filename or "system")
        return _fail(options, StoreError(what, where, "Choose another place"), ENVIRONMENT)


def _fail(options: argparse.Namespace, error: EdgeError, code: int) -> int:
    if options.json:
        print(json.dumps({"error": error.what, "where": error.where, "fix": error.fix}))
    print(f"edge-gateway: {error}", file=sys.stderr)
    return code


def _show(options: argparse.Namespace, found: Any, text: str) -> int:
    print(json.dumps(found, indent=1) if options.json else text)
    return OK


# -- commands -----------------------------------------------------------------------


def do_run(options: argparse.Namespace) -> int:
    with opened(options.dir, owner=True) as (config, store, registry):
        domains = Domains(config.domains)
        if not domains:
            raise ConfigError(
                "no domain file: every record would be refused and set aside by its device",
                str(config.domains),
                "Copy one there",
            )
        enrol.tell_brokers(config, registry)
        custody = Custody(store, registry, domains, config.root)
        retention = Retention(store, config.keep_bytes, config.keep_days)

        def housekeeping(now: int) -> None:
            if config.devices is not None:
                days = ca.lasts(config.devices.cert)
                custody.counters.gauges["certificate_days"] = -1 if days is None else days
            for _ in range(20):
                if not retention.step(now):
                    break

        rounds = Rounds(config.folder / "mailbox.db", custody)
        bridge = Bridge(config, custody, housekeeping, rounds)
        bridge.stop_on_signals()
        notifier = Notifier()

        def beat(state: str) -> None:
            notifier.beat()
            notifier.status(state)

        bridge.beat = beat
        children: list[broker.Child | Supervised] = []
        try:
            children += [broker.Child(config.broker_toml)] if options.broker else []
            children += [child_router(options.dir)] if options.route else []
            notifier.ready()
            bridge.run()
        finally:
            notifier.stopping()
            for child in children:
                child.stop()
    return OK


def do_broker(options: argparse.Namespace) -> int:
    with opened(options.dir) as (config, _, registry):
        broker.write_toml(config, registry)
    broker.serve(config.broker_toml)
    return OK


def do_devices(options: argparse.Namespace) -> int:
    with opened(options.dir) as (config, store, registry):
        found = reports.devices(config, store, registry)
    lines = [
        f"{'name':20} {'agent':16} {'gen':>3} {'online':6} {'outcomes':>8} {'dup':>5} "
        f"{'confl':>5} {'lost':>5} {'pending':>7} last seen"
    ]
    for device in found:
        state = (
            "revoked"
            if device["revoked"]
            else {True: "yes", False: "no"}.get(device["online"], "?")
        )
        pending = "?" if device["pending"] is None else device["pending"]
        lines.append(
            f"{device['name']:20} {device['agent']:16} {device['generation']:3} {state:6} "
            f"{device['outcomes']:8} {device['duplicates']:5} {device['conflicts']:5} "
            f"{device['lost_by_restore']:5} {pending:>7} {device['last_seen'] or 'never'}"
        )
        if device["labels"]:
            counted = ", ".join(f"{name} {count}" for name, count in device["labels"].items())
            lines.append(f"{'':20} {counted}")
    return _show(options, found, "\n".join(lines))


def do_status(options: argparse.Namespace) -> int:
    with opened(options.dir) as (config, store, registry):
        found = reports.status(config, store, registry)
        if options.check:
            found["check"] = store.check()
    rejected = ", ".join(f"{k} {v}" for k, v in found["rejected"].items()) or "none"
    text = "\n".join(
        [
            f"gateway    {found['gateway']}, {'running' if found['running'] else 'not running'}",
            f"database   {found['database']['path']}, {found['database']['outcomes']} outcomes, "
            f"{found['database']['bytes'] / 1e6:.1f} MB",
            f"devices    {found['devices']}, {found['online']} online",
            f"rejected   {rejected}",
            f"broker     {_broker(found)}",
            *(
                [f"TLS        certificate for {found['certificate_days']} days more"]
                if found["certificate_days"] is not None
                else []
            ),
            f"conflicts  {found['conflicts']}",
            f"lost       {found['lost_by_restore']} by restore from backup",
            *(f"domain     {name}" for name in found["domains"]),
            *([f"check      {found['check']}"] if options.check else []),
        ]
    )
    _show(options, found, text)
    return FAILED if options.check and found["check"] != "ok" else OK


def _broker(found: dict[str, Any]) -> str:
    """What is wrong with the connection, and what the broker refused."""
    note = ((found["process"] or {}).get("notes") or {}).get("broker", "")
    text = f"NOT CONNECTED ({note}); " if note and found["running"] else ""
    if found["broker"] is None:
        return text + "what it refuses is counted by `edge-gateway mosquitto` only"
    refused = ", ".join(f"{k} {v}" for k, v in found["broker"]["refused"].items() if v)
    return text + f"refused {refused or 'nothing'}"


def do_export(options: argparse.Namespace) -> int:
    with opened(options.dir) as (config, store, registry):
        names = {device.agent: device.name for device in registry.devices()}
        rows = reports.outcomes(store, Domains(config.domains), names)
        if options.out is None:
            reports.export(rows, sys.stdout, options.format, options.frames)
            return OK
        with options.out.open("w", newline="") as file:
            count = reports.export(rows, file, options.format, options.frames)
    return _show(
        options, {"rows": count, "out": str(options.out)}, f"{count} outcomes in {options.out}"
    )


# -- the parser ---------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-gateway",
        description="Takes outcomes from devices over MQTT: verifies, commits, acknowledges.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edge-gateway {__version__}")
    parser.add_argument(
        "-C",
        "--dir",
        type=Path,
        default=Path(os.environ.get("EDGE_GATEWAY_DIR", ".")),
        metavar="DIR",
        help="folder made by init (default: $EDGE_GATEWAY_DIR, else the current folder)",
    )
    parser.add_argument("--verbose", action="store_true", help="log more")
    parser.set_defaults(json=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, do: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.set_defaults(do=do)
        return sub

    add_setup_commands(commands)
    sub = command("run", do_run, "take in frames until SIGTERM")
    sub.add_argument("--broker", action="store_true", help="run the embedded broker as a child")
    sub.add_argument("--route", action="store_true", help="run `edge-gateway route` as a child")

    command("broker", do_broker, "run the embedded broker (loopback; demo and tests)")

    add_device_commands(commands)
    command("devices", do_devices, "list devices: last seen, backlog, drops, versions")
    sub = command("status", do_status, "the gateway at a glance")
    sub.add_argument("--check", action="store_true", help="verify the whole database (exit 1)")

    sub = command("export", do_export, "write every outcome with its repaired time")
    sub.add_argument("--format", choices=("jsonl", "csv"), default="jsonl")
    sub.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
    sub.add_argument("--frames", action="store_true", help="with the frame and its SHA-256")

    add_backup_commands(commands)
    add_routing_commands(commands)
    add_network_commands(commands)
    add_mail_commands(commands)
    add_domain_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
