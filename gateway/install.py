"""`edge-gateway install`: users, folders and units, on this machine or in an image.

What it needs to know it finds out: the interpreter that runs it, whether that lies in
somebody's home directory (then the services see that folder and nothing else there), which
groups of sensor buses exist. Run again at any time: it brings everything up to date.
"""

import os
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import gateway
from edge_agent.errors import ConfigError, StoreError
from gateway.units import (
    AGENT_USER,
    AGENTS,
    GATEWAY_USER,
    HOMES,
    SENSOR_GROUPS,
    Facts,
    sysusers,
    units,
)

UNITS = Path("etc/systemd/system")
SYSUSERS = Path("etc/sysusers.d/edge-gateway.conf")


def facts(folder: Path, root: Path = Path("/")) -> Facts:
    """What the units depend on. root: of the system they are for."""
    package = Path(gateway.__file__).resolve().parents[1]
    usual = [Path(p).resolve() for p in (*site.getsitepackages(), sysconfig.get_path("purelib"))]
    hidden = {
        path
        for path in (Path(sys.prefix), Path(sys.base_prefix), package)
        if any(path.is_relative_to(home) for home in HOMES)
    }
    text = root / "etc/group"
    lines = text.read_text().splitlines() if text.exists() else []
    groups = {line.partition(":")[0] for line in lines}
    return Facts(
        sys.executable,
        "" if package in usual else str(package),
        folder,
        tuple(sorted(hidden)),
        tuple(g for g in SENSOR_GROUPS if g in groups),
    )


def files(found: Facts) -> "dict[Path, str]":
    """Everything that is written, by its path below the root."""
    return {SYSUSERS: sysusers(), **{UNITS / name: text for name, text in units(found).items()}}


def install(
    folder: Path,
    agents: Iterable[str] = (),
    root: Path = Path("/"),
    start: bool = True,
    gateway_too: bool = True,
) -> "list[str]":
    """Write the files, make the users, own the folders, enable the services; those enabled.

    root: another system's root, for images; nothing is started there.
    gateway_too: False on a machine with agents alone.
    """
    here = root == Path("/")
    if os.geteuid() != 0:
        raise ConfigError(
            "writes to the system and needs root", "install", "Run it with sudo, or --dry-run"
        )
    names = list(agents)
    for name in names:
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise ConfigError(f"{name!r} is not allowed", "--agent", "Write letters, digits, . _ -")
    if gateway_too and not (root / folder.relative_to("/") / "gateway.json").exists():
        raise ConfigError("no gateway here", str(folder), f"Run: edge-gateway init {folder} --tls")
    for path, text in files(facts(folder, root)).items():
        if not gateway_too and path.parent == UNITS and "agent" not in path.name:
            continue
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
            target.chmod(0o644)
    at = [] if here else [f"--root={root}"]
    _run("systemd-sysusers", *at, str(SYSUSERS.name))
    if gateway_too:
        _own(root / folder.relative_to("/"), GATEWAY_USER, root)
    for name in names:
        place = root / AGENTS.relative_to("/") / name
        place.mkdir(parents=True, exist_ok=True)
        _own(place.parent, AGENT_USER, root)
    services = ["edge-gateway-broker", "edge-gateway", "edge-gateway-route"] * gateway_too
    services += [f"edge-agent@{name}" for name in names]
    if here and Path("/run/systemd/system").exists():
        _run("systemctl", "daemon-reload")
    _run("systemctl", *at, "enable", "--quiet", *services)
    if here and start:
        # Those whose condition is not met yet (no network, no device.json) pass quietly.
        _run("systemctl", "restart", *services)
    return services


def _own(top: Path, user: str, root: Path) -> None:
    """The user owns the folder and what is in it; nobody else sees it."""
    for line in (root / "etc/passwd").read_text().splitlines():
        name, _, uid, gid, *_ = line.split(":")
        if name == user:
            break
    else:
        raise StoreError("was not made", f"user {user}", "See: systemd-sysusers")
    for path in [top, *top.rglob("*")]:
        os.chown(path, int(uid), int(gid), follow_symlinks=False)
    top.chmod(0o700)


def _run(*command: str) -> None:
    if shutil.which(command[0]) is None:
        raise StoreError("is not here", command[0], "This needs systemd; see docs/deploy-pi.md")
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise StoreError(
            (done.stderr or done.stdout).strip()[:500] or f"ended with {done.returncode}",
            " ".join(command)[:200],
            "See: journalctl -xe",
        )
