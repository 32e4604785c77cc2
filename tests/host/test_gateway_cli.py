"""`edge-gateway` as people and scripts meet it."""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gateway_kit import (
    ROOT,
    Publisher,
    broker_running,
    enrol_device,
    free_port,
    gateway,
    gateway_running,
    listening,
    make_gateway,
    running,
    wait_until,
)

from edge_agent.config import Config
from gateway import cli
from gateway.cli import build_parser
from gateway.config import GatewayConfig
from gateway.keys import load_master
from gateway.mailbox import NEIGHBOUR, Mailbox


@pytest.fixture
def folder(tmp_path):
    make_gateway(tmp_path / "gw", free_port())
    return tmp_path / "gw"


def run(*arguments, capsys=None):
    code = cli.main([str(a) for a in arguments])
    return code, *capsys.readouterr()


def test_init_leaves_nothing_for_others_to_read(folder):
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() or path.name.startswith(("gateway.", "master", "broker", "passwd")):
            assert path.stat().st_mode & 0o077 == 0, path
    config = GatewayConfig(folder)
    assert len(config.password) == 32
    assert config.password not in repr(config)
    assert len(load_master(config.master)) == 32


def test_a_folder_of_a_user_without_a_name(tmp_path, monkeypatch):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    gateway("init", tmp_path / "gw")
    lines = (tmp_path / "gw" / "mosquitto" / "mosquitto.conf").read_text().splitlines()
    assert not [line for line in lines if line.startswith("user ")]
    monkeypatch.undo()
    gateway("init", tmp_path / "named")
    named = (tmp_path / "named" / "mosquitto" / "mosquitto.conf").read_text().splitlines()
    assert len([line for line in named if line.startswith("user ")]) == 1


def test_two_gateways_share_no_secret(tmp_path):
    for name in "ab":
        gateway("init", tmp_path / name)
    a, b = GatewayConfig(tmp_path / "a"), GatewayConfig(tmp_path / "b")
    assert a.gateway != b.gateway
    assert a.password != b.password
    assert load_master(a.master) != load_master(b.master)


def test_init_does_not_touch_what_is_there(folder, capsys):
    before = (folder / "master.key").read_bytes()
    code, out, err = run("init", folder, capsys=capsys)
    assert (code, out) == (3, "")
    assert "a gateway is here already" in err
    assert (folder / "master.key").read_bytes() == before


def test_enrol_writes_what_the_agent_reads(folder, tmp_path, capsys):
    template = tmp_path / "site.json"
    template.write_text(json.dumps({"domain": "motion.domain", "journal": {"batch": 4}}))
    out = tmp_path / "pump.json"
    code, text, _ = run(
        "-C", folder, "enrol", "pump", "--agent", "00112233445566aa", "--out", out,
        "--host", "gw.example", "--template", template, capsys=capsys,
    )  # fmt: skip
    assert code == 0
    assert out.stat().st_mode & 0o777 == 0o600
    config = Config.load(str(out))
    assert config.agent.hex() == "00112233445566aa"
    assert (config.broker.host, config.batch, config.domain) == ("gw.example", 4, "motion.domain")
    assert config.key.hex() not in text
    # Once more: neither the id, nor the name, nor the file.
    for arguments, word in (
        (("other", "--agent", "00112233445566aa", "--out", tmp_path / "x.json"), "device id"),
        (("pump", "--out", tmp_path / "x.json"), "device name"),
        (("third", "--out", out), "is there already"),
    ):
        code, _, err = run("-C", folder, "enrol", *arguments, capsys=capsys)
        assert code == 3 and word in err
        assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("enrol", "bad name!", "--out", "x.json"),
        ("enrol", "a", "--agent", "123", "--out", "x.json"),
        ("revoke", "nobody"),
        ("rotate", "nobody", "--out", "x.json"),
        ("enrol", "a", "--out", "x.json", "--template", "missing.json"),
    ],
)
def test_wrong_arguments_are_usage_errors(folder, arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("-C", folder, *arguments, capsys=capsys)
    assert code == 2
    assert err.startswith("edge-gateway: ") and out == ""


def test_a_folder_without_a_gateway(tmp_path, capsys):
    code, _, err = run("-C", tmp_path, "devices", capsys=capsys)
    assert code == 2
    assert f"edge-gateway init {tmp_path}" in err


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch", 0), ("batch", "50"), ("root", "qis/#"), ("retention", {"days": -1}),
        ("broker", {"prot": 1}), ("typo", 1), ("broker", {"port": 70000}),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named(folder, field, value, capsys):
    path = folder / "gateway.json"
    fields = json.loads(path.read_text())
    if isinstance(value, dict) and isinstance(fields.get(field), dict):
        fields[field].update(value)
    else:
        fields[field] = value
    path.write_text(json.dumps(fields))
    code, _, err = run("-C", folder, "status", capsys=capsys)
    assert code == 2
    assert field in err


def test_a_secret_that_others_can_read_is_refused(folder, capsys):
    (folder / "master.key").chmod(0o644)
    code, _, err = run("-C", folder, "status", capsys=capsys)
    assert code == 2
    assert "chmod 600" in err


def test_errors_as_json(folder, capsys):
    code, out, _ = run("-C", folder, "revoke", "nobody", "--json", capsys=capsys)
    assert code == 2
    assert set(json.loads(out)) == {"error", "where", "fix"}


def test_a_place_that_cannot_be_written_is_named(folder, tmp_path, capsys):
    (tmp_path / "no").write_text("a file")
    code, _, err = run("-C", folder, "export", "--out", tmp_path / "no" / "x", capsys=capsys)
    assert code == 3 and str(tmp_path / "no" / "x") in err and "Traceback" not in err


def test_a_revoked_device_has_no_mail(folder, capsys):
    agents = [enrol_device(folder, name) for name in ("pump", "fan")]
    pump, fan = (bytes.fromhex(json.loads(path.read_text())["agent"]) for path in agents)
    with contextlib.closing(Mailbox(folder / "mailbox.db")) as mailbox:
        for agent in (pump, fan):
            mailbox.seen(agent, 0, None, 0, 0, 1)
            mailbox.put(agent, NEIGHBOUR, b"x", 1, 0)
        for _ in range(2):
            assert run("-C", folder, "revoke", "pump", capsys=capsys)[0] == 0
            assert [box.agent for box in mailbox.boxes()] == [fan]
        assert mailbox.waiting(pump).items == 0 and mailbox.waiting(fan).items == 1


def test_every_command_explains_itself(capsys):
    parser = build_parser()
    commands = dict(parser._subparsers._group_actions[0].choices)
    assert set(commands) >= {
        "init", "run", "broker", "enrol", "devices", "export", "status", "rotate", "revoke",
        "route", "query", "network", "domain",
    }  # fmt: skip
    for name in ("network", "domain"):  # groups: what they hold is what is called
        group = commands.pop(name)
        assert group.description, name
        inner = group._subparsers._group_actions[0].choices
        commands.update({f"{name} {command}": sub for command, sub in inner.items()})
    for name, sub in commands.items():
        assert sub.description, name
        assert any("--json" in action.option_strings for action in sub._actions), name
        for action in sub._actions:
            assert action.help or action.dest in ("domain", "format", "file", "out"), (
                f"{name}: {action.dest}"
            )
    assert gateway("--help").stdout.startswith("usage: edge-gateway")
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "run"],
        capture_output=True, text=True, cwd=ROOT, env=dict(os.environ, EDGE_GATEWAY_DIR="/nowhere"),
    )  # fmt: skip
    assert done.returncode == 2 and "edge-gateway init /nowhere" in done.stderr


def test_running_without_a_domain_is_refused(folder, capsys):
    """Every record would be refused, and set aside by its device."""
    for path in (folder / "domains").iterdir():
        path.unlink()
    code, _, err = run("-C", folder, "run", capsys=capsys)
    assert code == 2
    assert "no domain file" in err


def test_a_file_that_is_no_domain_is_named(folder, capsys):
    (folder / "domains" / "notes.txt").write_text("not a domain")
    code, _, err = run("-C", folder, "run", capsys=capsys)
    assert code == 2
    assert "notes.txt" in err


def test_a_second_gateway_on_one_folder(folder, tmp_path):
    with (
        broker_running("iotcore", folder, GatewayConfig(folder).port),
        gateway_running(folder, tmp_path / "log") as first,
    ):
        second = gateway("-C", folder, "run", check=False)
        assert second.returncode == 3
        assert f"process {first.pid} is the gateway of this database" in second.stderr


def children(pid):
    """Of all its threads."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in lists for child in path.read_text().split()]


def test_a_broker_of_ones_own_is_kept_alive_and_ends_with_the_gateway(folder, tmp_path):
    port = GatewayConfig(folder).port
    log = tmp_path / "gateway.log"
    command = [sys.executable, "-m", "gateway.cli", "-C", folder, "run", "--broker"]
    with running(*command, log=log, ready=lambda: "connected to" in log.read_text()) as process:
        (first,) = children(process.pid)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: log.read_text().count("connected to") == 2, 20)
        (second,) = children(process.pid)
        assert second != first
        process.kill()
        process.wait(10)
        wait_until(lambda: not listening(port), 5)


def test_a_day_in_the_life(folder, tmp_path, capsys):
    """Enrol, run with its own broker, receive, look, export, revoke."""
    publisher = Publisher(enrol_device(folder, "pump"))
    log = tmp_path / "gateway.log"
    command = [
        sys.executable, "-m", "gateway.cli", "-C", folder, "run", "--broker",
    ]  # fmt: skip
    with running(*command, log=log, ready=lambda: "connected to" in log.read_text()) as process:
        publisher.start()
        assert publisher.ready.wait(10)
        publisher.make(30)
        publisher.client.publish(publisher.device.topic(), b"rubbish", 1)
        publisher.send()
        wait_until(lambda: not publisher.held, 10)

        def seen():
            code, out, _ = run("-C", folder, "devices", "--json", capsys=capsys)
            assert code == 0
            return json.loads(out)[0]

        wait_until(lambda: seen()["online"] and seen()["outcomes"] == 30, 15)
        code, out, _ = run("-C", folder, "status", "--json", capsys=capsys)
        status = json.loads(out)
        assert status["running"] is True
        assert status["process"]["pid"] == process.pid
        assert status["rejected"] == {"not-cbor": 1}
        metrics = (folder / "metrics.prom").read_text()
        assert "edge_gateway_accepted_total" in metrics
        assert publisher.device.keys.mqtt_password() not in metrics + log.read_text()

        # A device that is taken off the register is a stranger at once.
        assert run("-C", folder, "revoke", "pump", capsys=capsys)[0] == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    publisher.stop()

    code, out, _ = run("-C", folder, "export", capsys=capsys)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["seq"] for row in rows] == list(range(1, 31))
    assert rows[0]["device"] == "pump"
    assert (rows[0]["domain"], rows[0]["label"], rows[0]["label_name"]) == ("motion", 1, "lift")
    code, out, _ = run(
        "-C", folder, "export", "--format", "csv", "--frames", "--out", tmp_path / "x.csv",
        "--json", capsys=capsys,
    )  # fmt: skip
    assert json.loads(out)["rows"] == 30
    table = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text())))
    assert [bytes.fromhex(r["frame"]) for r in table] == list(publisher.made.values())
    text = run("-C", folder, "devices", capsys=capsys)[1]
    assert "revoked" in text and "pump" in text and "lift 30" in text
    assert str(ROOT) not in text
