"""The systemd units, judged by systemd itself, and what programs say to it."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gateway_kit import free_port, gateway, make_gateway, running, wait_until

from edge_agent.cpython.notify import Notifier
from edge_agent.cpython.owner import become_owner
from gateway import install
from gateway.units import Facts, sysusers, units

EXPOSURE = {  # at most, of 10; what is left is the network, and for agents the sensors
    "edge-gateway-broker.service": 1.1,
    "edge-gateway.service": 1.1,
    "edge-gateway-route.service": 1.1,
    "edge-gateway-seed.service": 1.1,
    "edge-agent@.service": 1.5,
}
FACTS = Facts(sys.executable, "", Path("/var/lib/edge-gateway"), (), ("i2c",))


@pytest.fixture
def written(tmp_path):
    for name, text in units(FACTS).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "edge-agent@pump.service").write_text(units(FACTS)["edge-agent@.service"])
    return tmp_path


def analyze(*arguments):
    command = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_systemd_finds_no_fault(written):
    names = sorted(written.glob("*.service"))
    assert len(names) == 6
    done = analyze("verify", "--man=no", "--recursive-errors=one", *names)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    # It does find faults.
    broken = written / "broken.service"
    broken.write_text(units(FACTS)["edge-gateway.service"].replace("Type=", "Typo="))
    assert "Typo" in analyze("verify", "--man=no", broken).stderr


@pytest.mark.parametrize("name", sorted(EXPOSURE))
def test_exposure_is_small(written, name):
    shown = name.replace("@", "@pump")
    done = analyze("security", "--offline=yes", "--no-pager", written / shown)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE[name], done.stdout


def test_services_see_an_interpreter_in_a_home_directory_and_nothing_else_there(monkeypatch):
    monkeypatch.setattr(sys, "prefix", "/home/pi/venv")
    found = install.facts(Path("/srv/gw"))
    assert Path("/home/pi/venv") in found.hidden
    text = units(found)["edge-gateway.service"]
    assert "ProtectHome=tmpfs\n" in text and "BindReadOnlyPaths=/home/pi/venv\n" in text
    assert "ReadWritePaths=/srv/gw\n" in text and "StateDirectory" not in text


def test_dry_run_shows_everything_and_needs_no_root(tmp_path):
    make_gateway(tmp_path / "gw", free_port())
    shown = gateway("-C", tmp_path / "gw", "install", "--dry-run").stdout
    for name in (*units(FACTS), "sysusers.d/edge-gateway.conf"):
        assert name in shown
    assert str(tmp_path / "gw") in shown and sysusers() in shown


def test_an_image_is_prepared(tmp_path):
    """Users, folders, units and links in another root; nothing of this machine is touched."""
    root = tmp_path / "root"
    for name in ("etc", "var/lib", "usr/lib/sysusers.d"):
        (root / name).mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\ni2c:x:998:\n")
    folder = root / "var/lib/edge-gateway"
    gateway("init", folder, "--tls", "--name", "pi.local")
    arguments = ["-C", "/var/lib/edge-gateway", "install", "--root", root, "--agent", "pump"]
    if os.geteuid() != 0:
        refused = gateway(*arguments, check=False)
        assert refused.returncode == 2 and "needs root" in refused.stderr
        return
    found = json.loads(gateway(*arguments, "--json").stdout)
    assert "edge-agent@pump" in found["services"]
    wants = root / "etc/systemd/system/multi-user.target.wants"
    assert {p.name for p in wants.iterdir()} == {s + ".service" for s in found["services"]}
    passwd = (root / "etc/passwd").read_text()
    uid = int(re.search(r"^edge-gateway:x:(\d+):", passwd, re.M)[1])
    assert uid and {p.lstat().st_uid for p in [folder, *folder.rglob("*")]} == {uid}
    agent = root / "var/lib/edge-agent/pump"
    assert agent.stat().st_uid not in (0, uid)
    assert "SupplementaryGroups=i2c\n" in (root / install.UNITS / "edge-agent@.service").read_text()
    # Once more changes nothing.
    before = {p: p.lstat().st_mtime_ns for p in (root / "etc").rglob("*") if p.is_file()}
    gateway(*arguments)
    assert before == {p: p.lstat().st_mtime_ns for p in before}


def test_root_becomes_the_owner_of_the_folder(tmp_path):
    """What root does in a service's folder belongs to the service afterwards."""
    folder = tmp_path / "gw"
    make_gateway(folder, free_port())
    if os.geteuid() != 0:
        before = os.geteuid()
        become_owner(folder)
        assert os.geteuid() == before
        return
    for parent in [tmp_path, *tmp_path.parents[:3]]:
        os.chmod(parent, 0o755)
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, 12345, 12345)
    out = folder / "pump.json"
    command = [sys.executable, "-m", "gateway.cli", "-C", str(folder), "enrol", "pump"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {p.lstat().st_uid for p in folder.rglob("*")} == {12345}


# -- the notification socket ----------------------------------------------------------------


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """The service manager's end of the socket."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    path = tmp_path / "notify"
    sock.bind(str(path))
    sock.settimeout(15)
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    yield sock
    sock.close()


def test_notifier_says_what_systemd_reads(manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    notifier = Notifier()
    assert "NOTIFY_SOCKET" not in os.environ  # children do not speak for us
    notifier.ready()
    notifier.status("connected")
    notifier.status("connected")
    for _ in range(3):
        notifier.beat()
    time.sleep(0.11)
    notifier.beat()
    notifier.stopping()
    said = [manager.recv(1024).decode() for _ in range(5)]
    assert said == ["READY=1", "STATUS=connected", "WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]


def test_notifier_without_a_manager_says_nothing(monkeypatch, tmp_path):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready()
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Notifier().ready()


def test_a_loop_that_hangs_falls_silent(manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "150000")

    async def main():
        beats = asyncio.create_task(Notifier().beats())
        await asyncio.sleep(0.2)
        time.sleep(0.4)  # the loop hangs
        beats.cancel()

    asyncio.run(main())
    manager.settimeout(0)
    count = 0
    with pytest.raises(BlockingIOError):
        while manager.recv(64) == b"WATCHDOG=1":
            count += 1
    assert 2 <= count <= 6


def heard(manager, wanted, seconds=20):
    end = time.monotonic() + seconds
    said = []
    while time.monotonic() < end:
        said.append(manager.recv(1024).decode())
        if said[-1].startswith(wanted):
            return said
    raise AssertionError(said)


def test_gateway_and_broker_tell_the_manager(manager, tmp_path, monkeypatch):
    folder = tmp_path / "gw"
    port = free_port()
    make_gateway(folder, port)
    env = dict(os.environ, WATCHDOG_USEC="3000000")
    log = tmp_path / "log"
    command = [sys.executable, "-m", "gateway.cli", "-C", folder]
    # Ready without a broker: it is not the gateway that is broken. What is wrong is said.
    with running(*command, "run", log=log, env=env) as process:
        heard(manager, "READY=1")
        assert "refused" in heard(manager, "STATUS=")[-1].lower()
        with running(*command, "mosquitto", log=tmp_path / "log2", env=env) as broker:
            heard(manager, "READY=1")
            heard(manager, "STATUS=connected")
            heard(manager, "WATCHDOG=1")
            broker.send_signal(signal.SIGTERM)
            assert broker.wait(15) == 0
        process.send_signal(signal.SIGTERM)
        heard(manager, "STOPPING=1")
        assert process.wait(15) == 0
    wait_until(lambda: not broker_listens(port))


def broker_listens(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
