"""`edge-gateway init`, `tls`, `install`, `mosquitto`: what makes a gateway and its services."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from edge_agent.errors import ConfigError
from gateway import ca, install, mosquitto_run, setup
from gateway.config import DEVICES, Domains, GatewayConfig
from gateway.network import join_endpoint


def _show(options: argparse.Namespace, found: Any, text: str) -> int:
    print(json.dumps(found, indent=1) if options.json else text)
    return 0


def _own(options: argparse.Namespace) -> "tuple[Path, Path, Path] | None":
    """The three files of an owner's certificate, all or none."""
    files = (options.tls_ca, options.tls_cert, options.tls_key)
    if not any(files):
        return None
    if not all(files):
        raise ConfigError("go together", "--tls-ca, --tls-cert, --tls-key", "Give all three")
    return tuple(path.absolute() for path in files)


def do_init(options: argparse.Namespace) -> int:
    folder: Path = options.folder
    tls = devices = None
    port = options.port or 1883
    if options.tls:
        port = options.port or setup.first_free(1883)
        outer = options.device_port or setup.first_free(8883, taken=[port])
        claim = options.claim_port or setup.first_free(8884, taken=[port, outer])
        devices = {"host": "-", "port": outer, "listen": options.listen, "claim_port": claim}
    elif options.tls_ca:
        tls = {"ca": str(options.tls_ca.absolute())}
        if options.tls_cert and options.tls_key:
            tls["server_cert"] = str(options.tls_cert.absolute())
            tls["server_key"] = str(options.tls_key.absolute())
    own = _own(options) if options.tls else None
    for name in options.name:
        ca.check_name(name)
    if own is not None:
        ca.check_own(*own, options.name)  # before anything is made
    config = setup.make_gateway(
        folder, options.domain, now_ms(), options.host, port, options.root, tls, devices
    )
    found: dict[str, Any] = {
        "folder": str(folder),
        "gateway": config.gateway.hex(),
        "domains": [d.name for d in Domains(config.domains).values()],
    }
    text = f"gateway {config.gateway.hex()} in {folder}\n"
    if devices is not None:
        names = setup.make_tls(config, options.name, own)
        config = setup.add_tls(config, {"host": names[0]})
        found["tls"] = setup.tls_report(config)
        text += f"devices reach it at {join_endpoint(names[0], devices['port'])} over TLS; "
        text += f"certificate for {', '.join(found['tls']['names'])}\n"
    setup.brokers_told(config)
    if not found["domains"]:
        text += f"copy a domain file into {config.domains} before devices send\n"
    text += "back up master.key now: without it no device can be verified again"
    return _show(options, found, text)


def do_tls(options: argparse.Namespace) -> int:
    config = GatewayConfig(options.dir)
    text = ""
    if options.make or options.renew:
        if config.devices is None and not options.make:
            raise ConfigError("devices do not use TLS here", str(config.path), "Give --make")
        names = list(options.name)
        if not names and config.devices is not None:
            # What devices were told stays what they are told.
            known = ca.subject_names(ca.load(config.devices.cert))
            names = [config.devices.host, *known]
        names = setup.make_tls(config, names, _own(options))
        ports: dict[str, Any] = {}
        if config.devices is None:
            ports["port"] = setup.first_free(8883, taken=[config.port])
            ports["claim_port"] = setup.first_free(8884, taken=[config.port, ports["port"]])
        config = setup.add_tls(config, {"host": names[0], **ports})
        setup.brokers_told(config)
        text = "devices that pin the certificate itself need its new fingerprint\n"
    found = setup.tls_report(config)
    text += "\n".join(
        [
            f"devices      {join_endpoint(found['host'], found['port'])}",
            f"names        {', '.join(found['names'])}",
            f"certificate  {found['days_left']} days left, SHA-256 {found['fingerprint']}",
            f"authority    {found['authority_days_left']} days left"
            f"{'' if found['own_authority'] else ', its key is elsewhere'}",
        ]
    )
    if found["days_left"] < ca.WARN_DAYS:
        text += "\nrenew it soon: edge-gateway tls --renew"
    return _show(options, found, text)


def do_install(options: argparse.Namespace) -> int:
    folder = options.dir.absolute()
    if options.dry_run:
        for path, text in install.files(install.facts(folder, options.root)).items():
            print(f"# {options.root / path}\n{text}")
        return 0
    services = install.install(
        folder, options.agent, options.root, not options.no_start, not options.agents_only
    )
    return _show(
        options,
        {"folder": str(folder), "services": services},
        "\n".join(f"enabled {name}" for name in services),
    )


def do_mosquitto(options: argparse.Namespace) -> int:
    return mosquitto_run.serve(GatewayConfig(options.dir))


def now_ms() -> int:
    return int(time.time() * 1000)


def add_setup_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Put these commands into the parser of edge-gateway."""

    def command(name: str, do: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.set_defaults(do=do)
        return sub

    def own_files(sub: argparse.ArgumentParser, ca_help: str) -> None:
        sub.add_argument("--tls-ca", type=Path, metavar="PEM", help=ca_help)
        sub.add_argument("--tls-cert", type=Path, metavar="PEM", help="the broker's certificate")
        sub.add_argument("--tls-key", type=Path, metavar="PEM", help="the broker's key")

    def names(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--name", action="append", default=[], metavar="HOST",
            help="by which devices reach this machine; the first is what they are told",
        )  # fmt: skip

    sub = command("init", do_init, "make a folder with settings, master secret, empty database")
    sub.add_argument("folder", type=Path, help="new folder")
    sub.add_argument("--domain", type=Path, action="append", default=[], metavar="FILE")
    sub.add_argument("--host", default="127.0.0.1", help="of the broker (default 127.0.0.1)")
    sub.add_argument("--port", type=int, default=0, help="of the broker (default 1883)")
    sub.add_argument("--root", default="qis/1", help="first topic levels (default qis/1)")
    sub.add_argument(
        "--tls", action="store_true",
        help="devices come from other machines, over TLS; makes an authority unless one is given",
    )  # fmt: skip
    names(sub)
    sub.add_argument(
        "--listen", default=DEVICES["listen"], metavar="ADDRESS", help="for devices (default: all)"
    )
    sub.add_argument("--device-port", type=int, default=0, help="for devices (default 8883)")
    sub.add_argument("--claim-port", type=int, default=0, help="for their codes (default 8884)")
    own_files(sub, "trust this authority, do not make one")

    command("mosquitto", do_mosquitto, "run mosquitto with this gateway's files, count refusals")

    sub = command("install", do_install, "systemd units, users and folders; needs root")
    sub.add_argument(
        "--agent", action="append", default=[], metavar="NAME", help="and an agent of that name"
    )
    sub.add_argument("--agents-only", action="store_true", help="no gateway on this machine")
    sub.add_argument("--no-start", action="store_true", help="enable only")
    sub.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="of an image, not this system"
    )
    sub.add_argument("--dry-run", action="store_true", help="print the files, change nothing")

    sub = command("tls", do_tls, "show, make or renew the certificate that devices see")
    how = sub.add_mutually_exclusive_group()
    how.add_argument("--make", action="store_true", help="for a gateway made without --tls")
    how.add_argument("--renew", action="store_true", help="a new certificate, same authority")
    names(sub)
    own_files(sub, "with --make or --renew: take these instead")
