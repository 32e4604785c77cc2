"""Finding a board's port, and saying what is in the way of it."""

import grp
import os
import pty
import subprocess
import sys
from types import SimpleNamespace

import pytest

from edge_agent.errors import ConfigError, StoreError
from edge_agent.tools import ports

CP2102 = SimpleNamespace(
    device="/dev/ttyUSB7", vid=0x10C4, pid=0xEA60, description="UART Bridge", hwid="x"
)
PICO = SimpleNamespace(device="/dev/ttyACM0", vid=0x2E8A, pid=5, description="Board", hwid="x")
OTHER = SimpleNamespace(device="/dev/ttyACM1", vid=0x1234, pid=5, description="Modem", hwid="x")
BUILT_IN = SimpleNamespace(device="/dev/ttyS0", vid=None, pid=None, description="n/a", hwid="n/a")


def usb(tmp_path, vendor, product, tty=""):
    device = tmp_path / "1-2"
    (device / "1-2:1.0" / tty if tty else device).mkdir(parents=True)
    (device / "idVendor").write_text(vendor + "\n")
    (device / "idProduct").write_text(product + "\n")
    return tmp_path


def test_boards_and_bridges_are_known_by_name():
    boards = ports.known()["boards"]
    assert {"esp32", "esp32-c3", "esp32-s3", "pico", "pico2"} <= set(boards)
    for entry in ports.known()["usb"]:
        assert set(entry) == {"id", "name", "driver", "boards"}
        assert len(entry["id"]) == 9 and set(entry["boards"]) <= set(boards)


def test_the_only_likely_port_is_taken():
    assert ports.find("auto", "pico", [BUILT_IN, CP2102, PICO, OTHER])[0] == "/dev/ttyACM0"
    assert ports.find("auto", "esp32", [BUILT_IN, CP2102, PICO]) == (
        "/dev/ttyUSB7", "Silicon Labs CP210x",
    )  # fmt: skip
    assert ports.find("auto", "pico", [OTHER])[0] == "/dev/ttyACM1"


def test_several_or_none_are_said(tmp_path):
    with pytest.raises(ConfigError, match=r"several boards: /dev/ttyUSB7 .*, /dev/ttyUSB8"):
        ports.find(
            "auto", "esp32", [CP2102, SimpleNamespace(**{**vars(CP2102), "device": "/dev/ttyUSB8"})]
        )
    with pytest.raises(ConfigError, match="another cable"):
        ports.find("auto", "esp32", [BUILT_IN], tmp_path)
    with pytest.raises(ConfigError, match=r"no such port.*There: /dev/ttyACM0 \(MicroPython"):
        ports.find("/dev/ttyNONE", "pico", [PICO])


def test_a_missing_driver_is_named(tmp_path):
    at = usb(tmp_path / "a", "10c4", "ea60")
    with pytest.raises(ConfigError, match=r"CP210x is plugged in .*sudo modprobe cp210x"):
        ports.find("auto", "esp32", [], at)
    at = usb(tmp_path / "b", "1a86", "7523")
    assert "brltty" in ports.absent("esp32", at)
    # With a tty below it the driver is there; it is not the reason.
    at = usb(tmp_path / "c", "10c4", "ea60", "ttyUSB0")
    assert "cable" in ports.absent("esp32", at)
    at = usb(tmp_path / "d", "2e8a", "0003")
    assert "no MicroPython yet" in ports.absent("pico", at)


@pytest.fixture
def line():
    ours, theirs = pty.openpty()
    yield os.ttyname(theirs)
    os.close(ours)
    os.close(theirs)


def test_a_port_in_use_names_its_user(line):
    ports.check(line)
    code = f"open({line!r}, 'rb+', 0)\nimport fcntl, time\nf = open({line!r}, 'rb+', 0)\n"
    code += "fcntl.flock(f, fcntl.LOCK_EX)\nprint(1, flush=True)\ntime.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(
            StoreError, match=rf"another program uses it: \S+ \(process {other.pid}\)"
        ):
            ports.check(line)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    ports.check(line)


def test_no_permission_names_the_group(line):
    """Somebody else than the owner, in a process of his own: the refusal is the kernel's."""
    group = os.stat(line).st_gid
    os.chmod(line, 0o660)
    code = (
        "import os, sys\n"
        "from edge_agent.tools import ports\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"ports.check({line!r})"
    )
    if os.geteuid() != 0:
        pytest.fail("this test has to be root to become somebody else")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = done.stderr.splitlines()[-1]

    name = grp.getgrgid(group).gr_name
    assert f"no permission: it belongs to group {name}" in said
    assert f"sudo usermod -aG {name} nobody" in said


def test_what_is_not_there_or_hangs(tmp_path):
    with pytest.raises(StoreError, match="plugged in"):
        ports.check(str(tmp_path / "none"))
    ports.check("socket://127.0.0.1:1")  # a URL is pyserial's business
