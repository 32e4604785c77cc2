"""Which serial port a board is at, and why it cannot be used.

A port is found by its USB id (flashing.json), through pyserial. Where there is none, Linux
still knows what is plugged in: a known device without a tty lacks its driver, and a chip in
its boot loader has no serial port yet. A port that is there may belong to a group that one is
not in, or to another program; who that is stands in /proc.
"""

import errno
import fcntl
import getpass
import grp
import importlib
import json
import os
import pwd
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.errors import ConfigError, EdgeError, StoreError

HERE = Path(__file__).parent
AUTO = "auto"
_USB = Path("/sys/bus/usb/devices")


class Port(NamedTuple):
    device: str
    name: str  # of the USB device, or what the system says
    boards: tuple[str, ...]  # that come with this USB id


def known() -> "dict[str, Any]":
    """flashing.json."""
    return dict(json.loads((HERE / "flashing.json").read_text()))


def extra(module: str) -> Any:
    """A module of the extra `boards`. ConfigError when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f"{module.partition('.')[0]} is not installed", "", 'pip install "edge-agent[boards]"'
        )


def listed(found: "list[Any] | None" = None) -> "list[Port]":
    """Serial ports of USB devices. found: of pyserial's comports(), which is asked otherwise."""
    if found is None:
        found = list(extra("serial.tools.list_ports").comports())
    table = {entry["id"]: entry for entry in known()["usb"]}
    ports = []
    for info in found:
        if info.vid is None:
            continue
        entry = table.get(f"{info.vid:04x}:{info.pid:04x}")
        name = entry["name"] if entry else str(info.description or info.hwid)
        ports.append(Port(info.device, name, tuple(entry["boards"]) if entry else ()))
    return sorted(ports)


def find(
    wanted: str, board: str, found: "list[Any] | None" = None, usb: Path = _USB
) -> "tuple[str, str]":
    """(device, what it is) of the port to use. ConfigError says what is there instead.

    wanted: a path, a URL of pyserial, or "auto".
    """
    ports = listed(found)
    shown = ", ".join(f"{p.device} ({p.name})" for p in ports)
    if wanted != AUTO:
        if "://" not in wanted and not os.path.exists(wanted):
            fix = f"There: {shown}" if shown else absent(board, usb)
            raise ConfigError("no such port", wanted, fix)
        return wanted, next((p.name for p in ports if p.device == wanted), "")
    likely = [p for p in ports if board in p.boards] or ports
    if len(likely) == 1:
        return likely[0].device, likely[0].name
    if likely:
        raise ConfigError(f"several boards: {shown}", "--port", "Name one with --port")
    raise ConfigError("no board found", "--port", absent(board, usb))


def absent(board: str, usb: Path = _USB) -> str:
    """What to do when no port is there, from what is plugged in."""
    table = {entry["id"]: entry for entry in known()["usb"]}
    for device in sorted(usb.glob("*")):
        try:
            vendor, product = (
                (device / name).read_text().strip() for name in ("idVendor", "idProduct")
            )
        except OSError:
            continue
        entry = table.get(f"{vendor}:{product}")
        if entry is None or list(device.glob("*:*/tty*")):
            continue
        if not entry["driver"]:
            return (
                f"{entry['name']} is plugged in ({entry['id']}): it has no MicroPython yet; "
                "give --firmware"
            )
        text = (
            f"{entry['name']} is plugged in ({entry['id']}) and has no port: its driver is not "
            f"there. sudo modprobe {entry['driver']}"
        )
        if entry["driver"] == "ch341":
            text += ", or remove brltty, which takes this chip for a Braille display"
        return text
    return (
        "Nothing known is plugged in. Try another cable (some carry power only) or another "
        "socket, and on a board with two sockets the other one"
    )


def check(device: str) -> None:
    """StoreError when the port cannot be opened, or somebody has it."""
    if "://" in device:
        return
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        raise denied(device, error)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise busy(device)
    finally:
        os.close(descriptor)


def denied(device: str, error: OSError) -> EdgeError:
    """The error for a port that does not open."""
    code = error.errno or 0
    if code == errno.EBUSY:
        return busy(device)
    if code not in (errno.EACCES, errno.EPERM):
        return StoreError(
            error.strerror or "cannot be opened", device, "Is the board still plugged in?", code
        )
    owner = os.stat(device).st_gid
    try:
        group = grp.getgrgid(owner).gr_name
        members = grp.getgrgid(owner).gr_mem
    except KeyError:
        group, members = str(owner), []
    try:
        me = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        me = getpass.getuser()
    if me in members and owner not in os.getgroups():
        fix = f"You were added to group {group} since you logged in: log out and in again"
    else:
        fix = f"sudo usermod -aG {group} {me}, then log out and in again"
    return StoreError(f"no permission: it belongs to group {group}", device, fix, code)


def busy(device: str) -> EdgeError:
    who = holder(device)
    return StoreError(
        "another program uses it" + (f": {who}" if who else ""),
        device,
        "End it, such as a serial monitor, and try again",
        errno.EBUSY,
    )


def holder(device: str) -> str:
    """Program and process id of whoever has the port open, as far as /proc shows; or ""."""
    wanted = os.path.realpath(device)
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        try:
            if any(os.path.realpath(fd) == wanted for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
        except OSError:
            continue
    return ""
