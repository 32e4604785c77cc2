"""`edge-gateway backup`, `restore`."""

import argparse
import getpass
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_agent.errors import ConfigError
from gateway import backup, setup
from gateway.config import GatewayConfig
from gateway.files import read_private, write_private
from gateway.opening import opened


def do_backup(options: argparse.Namespace) -> int:
    code = ""
    with opened(options.dir) as (config, _, _registry):
        if options.keys:
            code = _make_code(options)
        manifest = backup.backup(config, options.file, code)
    text = f"{len(manifest['files'])} files in {options.file}"
    if code:
        text += "; its keys open with the recovery code alone: keep the two apart"
    else:
        text += ", no key among them: keep master.key and gateway.json elsewhere, or give --keys"
    found = {"backup": str(options.file), "keys": bool(code), "files": sorted(manifest["files"])}
    print(json.dumps(found, indent=1) if options.json else text)
    return 0


def _make_code(options: argparse.Namespace) -> str:
    """The code in --code FILE; a new one is written there, or shown on a terminal."""
    if options.code is not None and options.code.exists():
        return read_private(options.code).decode("ascii", "replace").strip()
    code = backup.new_code()
    if options.code is not None:
        write_private(options.code, code + "\n", exclusive=True)
    elif sys.stdout.isatty() and not options.json:
        print(f"recovery code, on paper, not beside the backup:\n\n    {code}\n")
    else:
        raise ConfigError(
            "a code is a secret, and this is no terminal", "--keys", "Name its file with --code"
        )
    return code


def do_restore(options: argparse.Namespace) -> int:
    def code() -> str:
        if options.code is not None:
            return read_private(options.code).decode("ascii", "replace")
        if sys.stdin.isatty():
            return getpass.getpass("Recovery code (not shown): ")
        return sys.stdin.readline(200)

    done = backup.restore(options.dir, options.file, code)
    config = GatewayConfig(options.dir)
    setup.brokers_told(config)
    when = datetime.fromtimestamp(done.made_ms / 1000, UTC).isoformat(timespec="seconds")
    found: dict[str, Any] = {
        "gateway": done.gateway.hex(),
        "made": when,
        "keys": done.keys,
        "before": str(done.aside) if done.aside else None,
        "kept": done.merged,
    }
    lines = [f"gateway {done.gateway.hex()} as of {when}"]
    if done.aside:
        lines.append(f"what was here before is in {done.aside}")
    if done.merged:
        lines.append(f"newer than the backup, and kept: {', '.join(done.merged)}")
    else:
        lines.append(
            "devices revoked or given a new key after that are not known here:"
            " revoke or rotate them again"
        )
    lines.append("devices send again what they still hold; `status` counts what is lost")
    print(json.dumps(found, indent=1) if options.json else "\n".join(lines))
    return 0


def add_backup_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Put `backup` and `restore` into the parser of edge-gateway."""
    for name, do, text, code in (
        ("backup", do_backup, "one file with everything, while the gateway runs",
         "the recovery code: used, or made and written there"),
        ("restore", do_restore, "put a backup into the folder; the gateway must not run",
         "the recovery code; default: ask, or standard input"),
    ):  # fmt: skip
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.add_argument("file", type=Path, metavar="FILE")
        sub.add_argument("--code", type=Path, metavar="FILE", help=code)
        if name == "backup":
            sub.add_argument("--keys", action="store_true", help="with the keys, sealed")
        sub.set_defaults(do=do)
