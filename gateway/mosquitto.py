"""Files for mosquitto, the broker of production.

Mosquitto's defaults do not suit: of a long backlog it keeps 1,000 messages and silently
drops the rest, and it lets 20 be in flight. Custody survives both, at the price of sending
again. What custody cannot do is keep devices apart; that is what the rules are for: a
device writes its own `up` and `state`, reads its own `ack`, `box`, `cfg` and `ota`, and
nothing else.

There are two listeners. Plain TCP on loopback is for the gateway's own processes, which log
in too. TLS is for devices (section "devices" of gateway.json); there the client id is the
user name whatever a client says, so that no device can take over another's session.
"""

import base64
import hashlib
import os
import pwd
import signal
from pathlib import Path

from gateway.broker import users
from gateway.config import GatewayConfig
from gateway.files import write_private
from gateway.keys import Registry
from gateway.routes.pages import owner_rules

ITERATIONS = 101  # mosquitto's own; these passwords are 128 random bits, not words
DOWN = ("ack", "box", "cfg", "ota")


def conf(config: GatewayConfig, folder: Path, listener: str = "127.0.0.1") -> str:
    """mosquitto.conf. Plain TCP stays on loopback; "devices" in gateway.json opens 8883."""
    lines = [
        "# Written by `edge-gateway`. Local changes belong in conf.d of the system.",
        "per_listener_settings false",
        "allow_anonymous false",
        *_user(folder),
        f"password_file {folder / 'passwd'}",
        f"acl_file {folder / 'acl'}",
        "# The default of 1000 drops the rest of a backlog after acknowledging it.",
        "max_queued_messages 0",
        "max_inflight_messages 200",
        # Small packets must not wait for the next acknowledgement of TCP.
        "set_tcp_nodelay true",
        "max_packet_size 8192",
        "persistence true",
        f"persistence_location {folder}/",
        "autosave_interval 60",
        f"pid_file {folder / 'mosquitto.pid'}",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "# These are notices, which only the pipe of `edge-gateway mosquitto` hears; without",
        "# them some handshakes that fail are not told at all.",
        "connection_messages true",
        f"listener {config.port} {listener}",
    ]
    tls = config.tls or {}
    if tls.get("ca") and tls.get("server_cert") and tls.get("server_key"):
        lines += [
            f"cafile {tls['ca']}",
            f"certfile {tls['server_cert']}",
            f"keyfile {tls['server_key']}",
        ]
    devices = config.devices
    if devices is not None:
        lines += [
            "",
            "# Devices.",
            f"listener {devices.port} {devices.listen}".rstrip(),
            f"cafile {devices.ca.resolve()}",
            f"certfile {devices.cert.resolve()}",
            f"keyfile {devices.key.resolve()}",
            "tls_version tlsv1.2",
            "use_username_as_clientid true",
        ]
    return "\n".join(lines) + "\n"


def _user(folder: Path) -> list[str]:
    """Whom a broker started as root becomes; nobody when the owner's number has no name."""
    try:
        owner = pwd.getpwuid(folder.stat().st_uid).pw_name
    except KeyError:  # as in many a container
        return []
    why = "# Only when started as root: the owner of this folder, who can read its secrets."
    return [why, f"user {owner}"]


def acl(config: GatewayConfig) -> str:
    """Topic rules. `%u` is the user name, which is the agent id."""
    root = config.root
    lines = [f"user {config.user}"]
    lines += [f"topic read {root}/+/{name}" for name in ("up", "state", "judge")]
    lines += [f"topic write {root}/+/{name}" for name in DOWN]
    lines += owner_rules(root, config.gateway)
    lines += ["", "# programs that say how outcomes turned out"]
    lines += [f"user {config.operator}", f"topic write {root}/+/judge"]
    lines += ["", "# every device, by its own name"]
    lines += [f"pattern write {root}/%u/up", f"pattern write {root}/%u/state"]
    lines += [f"pattern read {root}/%u/{name}" for name in DOWN]
    return "\n".join(lines) + "\n"


def hashed(password: str, salt: bytes) -> str:
    """A password as mosquitto 2 stores it: PBKDF2 with SHA-512."""
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS)
    return f"$7${ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(key).decode()}"


def write_files(config: GatewayConfig, registry: Registry) -> bool:
    """Bring the folder up to date and tell a running mosquitto; True when one was told."""
    folder = config.mosquitto
    folder.mkdir(mode=0o700, exist_ok=True)
    folder = folder.resolve()
    kept = _entries(folder / "passwd")
    lines = []
    for user, password in sorted(users(config, registry).items()):
        old = kept.get(user, "")
        salt = base64.b64decode(old.split("$")[3]) if old.count("$") == 4 else os.urandom(12)
        lines.append(f"{user}:{hashed(password, salt)}\n")
    for name, text in (
        ("mosquitto.conf", conf(config, folder)),
        ("acl", acl(config)),
        ("passwd", "".join(lines)),
    ):
        path = folder / name
        if not path.exists() or path.read_text() != text:
            write_private(path, text)
    return _reload(folder / "mosquitto.pid")


def _entries(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    return {user: value for user, _, value in pairs}


def _reload(pid_file: Path) -> bool:
    """SIGHUP makes mosquitto read passwords and rules again."""
    try:
        pid = int(pid_file.read_text())
        if Path(f"/proc/{pid}/comm").read_text().strip() != "mosquitto":
            return False
        os.kill(pid, signal.SIGHUP)
    except (OSError, ValueError):
        return False
    return True
