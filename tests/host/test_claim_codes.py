"""Enrolment by a one-time code: over real TLS, with real processes."""

import contextlib
import json
import os
import pty
import re
import select
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from brokers import Pki
from gateway_kit import (
    broker_running,
    domain_bytes,
    free_port,
    gateway,
    gateway_running,
    wait_until,
)

from edge_agent.config import Config
from edge_agent.cpython import claim
from edge_agent.cpython.claim_code import ClaimCode
from edge_agent.errors import ConfigError, LinkError, RemoteError
from gateway import ca, claim_server
from gateway.claims import ClaimError, Claims
from gateway.cli import opened
from gateway.cli_devices import CLAIMS, picture
from gateway.config import GatewayConfig

SECRET, NONCE = b"s" * 10, b"n" * 16
NOW = 1_800_000_000_000


@pytest.fixture
def folder(tmp_path):
    domain = tmp_path / "motion.domain"
    domain.write_bytes(domain_bytes())
    gateway(
        "init", tmp_path / "gw", "--domain", domain, "--tls", "--name", "localhost",
        "--port", free_port(), "--device-port", free_port(), "--claim-port", free_port(),
    )  # fmt: skip
    return tmp_path / "gw"


@contextlib.contextmanager
def offered(folder, *arguments):
    """`edge-gateway enrol|rotate --claim` as a process; yields (the code, the process)."""
    out = folder.parent / f"code-{time.monotonic_ns()}.txt"
    command = [sys.executable, "-m", "gateway.cli", "-C", str(folder), *map(str, arguments)]
    process = subprocess.Popen(
        [*command, "--claim", "--out", str(out), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_until(out.exists, 20, process=process)
        assert out.stat().st_mode & 0o777 == 0o600
        code = out.read_text().strip()
        port = GatewayConfig(folder).devices.claim_port
        wait_until(lambda: _listens(port), 20, process=process)
        yield code, process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=10)
        out.unlink(missing_ok=True)


def _listens(port):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 0.2).close()
        return True
    return False


# -- the code ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["pi.local", "192.0.2.7", "fd00::7"])
def test_a_code_reads_back_however_it_is_typed(host):
    code = ClaimCode(host, 8884, os.urandom(10), os.urandom(16))
    for text in (
        code.text(), code.text().lower(), code.qr_text(),
        " " + code.text().replace("-", " ") + "\n",
        code.text().replace("0", "O").replace("1", "l"),
    ):  # fmt: skip
        if host != "pi.local" and text.endswith("l"):
            continue
        head, slash, tail = text.rpartition("/")
        if "O" in head or "l" in head.replace("local", ""):
            text = code.text().rpartition("/")[0] + slash + tail
        read = ClaimCode.parse(text)
        assert (read.host, read.port, read.secret, read.pin) == (
            host, 8884, code.secret, code.pin,
        )  # fmt: skip
    assert code.secret.hex() not in repr(code)


def test_the_code_and_the_reasons_are_those_of_the_specification():
    spec = (Path(__file__).resolve().parents[2] / "SPEC.md").read_text().partition("## 19.")[2]
    secret, pin = re.search(r"secret (\w+), pin (\w+), pi.local, 8884:", spec).groups()
    code = ClaimCode("pi.local", 8884, bytes.fromhex(secret), bytes.fromhex(pin))
    assert re.search(r"^    (pi.local:8884/\S+)$", spec, re.M)[1] == code.text()
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", spec, re.M))
    told = {name: int(status) for name, status in rows.items()}
    assert told == claim_server.STATUS


def test_slips_of_the_finger_are_seen():
    code = ClaimCode("pi.local", 8884, SECRET, b"p" * 16)
    text = code.text()
    start, seen, tried = text.index("/") + 1, 0, 0
    for at in range(start, len(text)):
        if text[at] == "-":
            continue
        for other in "0Z":
            if other != text[at]:
                tried += 1
                with contextlib.suppress(ConfigError):
                    ClaimCode.parse(text[:at] + other + text[at + 1 :])
                    continue
                seen += 1
    assert tried >= 80 and seen >= tried * 0.95
    with pytest.raises(ConfigError):
        ClaimCode.parse(text.replace("pi.local", "pj.local"))
    for bad in ("", "x", "pi.local/" + text.partition("/")[2], text[:-1], text + "0", "a" * 500,
                text.replace("8884", "99999"), text[:-1] + "?"):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            ClaimCode.parse(bad)
        assert len(bad) < 4 or bad not in str(caught.value)


def test_a_qr_code_holds_it():
    drawn = picture(ClaimCode("pi.local", 8884, SECRET, b"p" * 16)).splitlines()
    assert 15 <= len(drawn) <= 40
    assert max(map(len, drawn)) < 120


# -- the book ---------------------------------------------------------------------------


@pytest.fixture
def book(folder):
    with opened(folder) as (config, _, registry):
        yield Claims(config.folder / CLAIMS), registry


def make(claims, registry, name="pump", agent=b"\1" * 8, generation=1, secret=SECRET):
    return claims.make(secret, name, agent, generation, {}, False, NOW, NOW + 60_000)


def reason(call, *arguments):
    with pytest.raises(ClaimError) as caught:
        call(*arguments)
    return caught.value.reason


def test_a_code_works_once(book):
    claims, registry = book
    make(claims, registry)
    device = claims.redeem(SECRET, NONCE, registry, NOW + 1)
    assert (device.name, device.generation) == ("pump", 1)
    # The same device asks again, its answer was lost: the same again, nothing new.
    assert claims.redeem(SECRET, NONCE, registry, NOW + 2) == device
    assert reason(claims.redeem, SECRET, b"m" * 16, registry, NOW + 3) == "used"
    assert reason(claims.redeem, b"x" * 10, NONCE, registry, NOW + 3) == "unknown"
    assert reason(claims.redeem, SECRET, NONCE, registry, NOW + 60_000) == "expired"
    assert len(registry.devices()) == 1


def test_nothing_is_lost_between_the_two_steps(book):
    """The mark is made, then the process dies before the device is entered."""
    claims, registry = book
    mine = make(claims, registry)
    claims._run("UPDATE claims SET nonce = ? WHERE id = ?", (NONCE, mine.id))
    assert claims.redeem(SECRET, NONCE, registry, NOW).name == "pump"


def test_two_redeem_at_once_and_one_wins(book, folder):
    claims, _ = book
    make(claims, None)
    results = []

    def redeem(nonce):
        with opened(folder) as (_, _store, registry):
            try:
                results.append(claims.redeem(SECRET, nonce, registry, NOW).generation)
            except ClaimError as error:
                results.append(error.reason)

    threads = [threading.Thread(target=redeem, args=(bytes([n]) * 16,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, results)) == ["1", "used", "used", "used"]


def test_a_key_begins_with_its_code_not_before(book):
    claims, registry = book
    device = registry.add(b"\1" * 8, "pump", NOW)
    make(claims, registry, generation=2)
    assert registry.device(device.agent).generation == 1
    assert claims.redeem(SECRET, NONCE, registry, NOW).generation == 2
    assert claims.redeem(SECRET, NONCE, registry, NOW).generation == 2
    registry.rotate(registry.device(device.agent), NOW)
    assert reason(claims.redeem, SECRET, NONCE, registry, NOW) == "superseded"
    registry.revoke(registry.device(device.agent), NOW)
    assert reason(claims.redeem, SECRET, NONCE, registry, NOW) == "revoked"


def test_the_book_holds_no_secret(book):
    claims, registry = book
    make(claims, registry)
    assert claims.path.stat().st_mode & 0o777 == 0o600
    assert SECRET not in claims.path.read_bytes()
    with pytest.raises(ConfigError, match="is open"):
        make(claims, registry, secret=b"t" * 10)


# -- over the network ---------------------------------------------------------------------


def test_a_device_claims_its_file(folder, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    with offered(folder, "enrol", "pump") as (code, process):
        command = [sys.executable, "-m", "edge_agent.cli", "claim", "--json"]
        done = subprocess.run(
            [*command, "--config", site / "pump.json"], input=code + "\n", capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        said, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert json.loads(said)["claimed"] is True
    config = Config.load(str(site / "pump.json"))
    assert found["agent"] == config.agent.hex()
    assert (config.broker.host, config.domain) == ("localhost", "motion.domain")
    assert (site / config.broker.tls.ca).read_bytes() == (folder / "tls" / "ca.crt").read_bytes()
    assert (site / "motion.domain").read_bytes() == domain_bytes()
    assert {p.stat().st_mode & 0o077 for p in site.iterdir()} == {0}
    assert len(list(site.iterdir())) == 3
    # No secret anywhere that a person or a program prints.
    secret = ClaimCode.parse(code).secret.hex()
    for text in (
        said,
        log,
        done.stdout,
        done.stderr,
        gateway("-C", folder, "status", "--json").stdout,
    ):
        assert config.key.hex() not in text
        assert secret not in text and code.partition("/")[2] not in text


def test_a_code_is_on_no_command_line(folder):
    with offered(folder, "enrol", "pump") as (code, process):
        line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert code.partition("/")[2].encode() not in line


def test_refusals_are_told_apart_and_counted(folder, tmp_path):
    with offered(folder, "enrol", "pump") as (code, process):
        good = ClaimCode.parse(code)
        wrong = ClaimCode(good.host, good.port, b"x" * 10, good.pin)
        with pytest.raises(RemoteError, match="unknown"):
            claim.redeem(wrong.text(), tmp_path / "a.json")
        # Once more at once: the address has to wait. The right code has to wait, too.
        with pytest.raises(RemoteError, match="rate-limited"):
            claim.redeem(wrong.text(), tmp_path / "a.json")
        time.sleep(1.1)
        claim.redeem(code, tmp_path / "a.json")
        with pytest.raises(RemoteError, match="used"):
            claim.redeem(code, tmp_path / "b.json")
        assert not (tmp_path / "b.json").exists()
        process.communicate(timeout=20)
    rejected = json.loads(gateway("-C", folder, "status", "--json").stdout)["rejected"]
    assert rejected == {"claim-rate-limited": 1, "claim-unknown": 1, "claim-used": 1}


def test_an_answer_that_was_lost_is_given_again(folder, tmp_path):
    with offered(folder, "enrol", "pump") as (code, _):
        real = claim._write

        def fail(path, data):
            if path.name == "a.json":
                raise OSError(28, "no space")
            real(path, data)

        claim._write = fail
        try:
            with pytest.raises(OSError):
                claim.redeem(code, tmp_path / "a.json")
        finally:
            claim._write = real
        claim.redeem(code, tmp_path / "a.json")
    assert Config.load(str(tmp_path / "a.json")).generation == 1


def test_another_gateway_learns_nothing(folder, tmp_path):
    """Whoever answers at the address with another certificate is not told the secret."""
    pki = Pki(tmp_path)
    certificate, key, _ = pki.issue("broker", "localhost")
    heard = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        for authority in (Path(pki.ca).read_bytes(), (folder / "tls" / "ca.crt").read_bytes()):
            for _ in range(2):
                with contextlib.suppress(OSError):
                    raw, _ = listener.accept()
                    with context.wrap_socket(raw, server_side=True) as sock:
                        heard.append(sock.recv(4096))
                        sock.sendall(
                            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
                            % len(authority) + authority
                        )  # fmt: skip
                if len(heard) == 1:
                    break

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    pin = ca.pin(ca.load(folder / "tls" / "ca.crt"))
    code = ClaimCode("localhost", port, SECRET, pin)
    with pytest.raises(RemoteError, match="wrong-gateway"):
        claim.redeem(code.text(), tmp_path / "a.json")
    # It may even show the right authority, which is no secret: it lacks the key.
    with pytest.raises(LinkError, match="CERTIFICATE_VERIFY_FAILED"):
        claim.redeem(code.text(), tmp_path / "a.json")
    listener.close()
    thread.join(5)
    assert len(heard) >= 2
    assert all(SECRET.hex().encode() not in data and b"/claim" not in data for data in heard)
    assert not (tmp_path / "a.json").exists()


def test_a_file_of_another_device_is_not_touched(folder, tmp_path):
    gateway("-C", folder, "enrol", "other", "--out", tmp_path / "a.json")
    before = (tmp_path / "a.json").read_bytes()
    with offered(folder, "enrol", "pump") as (code, _):
        with pytest.raises(ConfigError, match="is of device") as caught:
            claim.redeem(code, tmp_path / "a.json")
        assert (tmp_path / "a.json").read_bytes() == before
        # The code is used up by now, and what is advised works all the same.
        assert caught.value.fix == "Name another file"
        claim.redeem(code, tmp_path / "b.json")
    assert Config.load(str(tmp_path / "b.json")).generation == 1
    assert not list(tmp_path.glob(".claim*"))


def test_a_new_key_keeps_the_rest_of_the_file(folder, tmp_path):
    out = tmp_path / "a.json"
    with offered(folder, "enrol", "pump") as (code, _):
        claim.redeem(code, out)
    fields = json.loads(out.read_text()) | {"journal": {"path": "here"}, "unsure_below": 7}
    out.write_text(json.dumps(fields))
    with offered(folder, "rotate", "pump") as (code, _):
        found = claim.redeem(code, out)
    new = json.loads(out.read_text())
    assert found["generation"] == new["generation"] == 2
    assert new["key"] != fields["key"]
    assert (new["journal"], new["unsure_below"]) == ({"path": "here"}, 7)


def test_a_new_key_loses_nothing_that_is_queued(folder, tmp_path):
    """A real agent, offline: what it sealed under the old key arrives after it took the new."""
    models = Path(__file__).resolve().parents[2] / "models"
    shutil.copy(models / "watch.domain", folder / "domains")
    (folder / "domains" / "motion.domain").unlink()
    device = tmp_path / "device.json"
    with offered(folder, "enrol", "pump") as (code, _):
        claim.redeem(code, device)
    fields = json.loads(device.read_text())
    replay = str(models / "data" / "watch_replay.bin")
    fields |= {
        "model": str(models / "watch_mlp_int8.tflite"),
        "sensor": {"kind": "replay", "path": replay, "person": 4, "speed": 0, "limit": 30},
    }
    device.write_text(json.dumps(fields))
    agent = [sys.executable, "-m", "edge_agent.cli"]
    run = [*agent, "run", "--config", str(device), "--quiet", "--json"]
    done = subprocess.run([*run, "--seconds", "4"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    look = [*agent, "journal", "--config", str(device), "--json"]
    held = json.loads(subprocess.run(look, capture_output=True, text=True).stdout)
    assert sum(held["pending"].values()) == 30, held
    with offered(folder, "rotate", "pump") as (code, _):
        claim.redeem(code, device)
    log = tmp_path / "gateway.log"
    with (
        broker_running("mosquitto", folder, GatewayConfig(folder).port),
        gateway_running(folder, log),
    ):
        done = subprocess.run(
            [*run, "--until-delivered"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr + log.read_text()

        def known():
            return json.loads(gateway("-C", folder, "devices", "--json").stdout)[0]

        wait_until(lambda: known()["outcomes"] == 60, 15, lambda: str(known()))
        assert known()["generation"] == 2
        assert known()["refused"] == known()["conflicts"] == 0


def test_a_code_nobody_takes_is_void(folder, tmp_path):
    with offered(folder, "enrol", "pump") as (code, process):
        listed = json.loads(gateway("-C", folder, "claims", "--json").stdout)
        assert [c["name"] for c in listed] == ["pump"]
        gateway("-C", folder, "claims", "--cancel", "pump")
        said, _ = process.communicate(timeout=20)
        assert process.returncode == 1 and json.loads(said)["claimed"] is False
        # The listener is open only while a code is.
        with pytest.raises(LinkError):
            claim.redeem(code, tmp_path / "a.json")
    assert json.loads(gateway("-C", folder, "devices", "--json").stdout) == []


def test_two_codes_one_listener(folder, tmp_path):
    with (
        offered(folder, "enrol", "a") as (first, one),
        offered(folder, "enrol", "b") as (second, _),
    ):
        claim.redeem(second, tmp_path / "b.json")
        claim.redeem(first, tmp_path / "a.json")
        one.communicate(timeout=20)
    names = {d["name"] for d in json.loads(gateway("-C", folder, "devices", "--json").stdout)}
    assert names == {"a", "b"}


def test_on_a_terminal_the_code_is_shown_and_on_a_pipe_not(folder):
    refused = gateway("-C", folder, "enrol", "pump", "--claim", check=False)
    assert refused.returncode == 2 and "no terminal" in refused.stderr
    assert json.loads(gateway("-C", folder, "claims", "--json").stdout) == []
    mine, theirs = pty.openpty()
    command = [sys.executable, "-m", "gateway.cli", "-C", str(folder), "enrol", "pump", "--claim"]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    shown = b""
    try:
        end = time.monotonic() + 20
        while b"edge-agent claim" not in shown and time.monotonic() < end:
            if select.select([mine], [], [], 0.5)[0]:
                shown += os.read(mine, 65536)
        text = shown.decode()
        code = re.search(r"localhost:\d+/[0-9A-Z-]{54}", text)
        assert code and ClaimCode.parse(code[0]).host == "localhost"
        assert text.count("█") > 100
        assert json.loads(gateway("-C", folder, "claims", "--json").stdout)
    finally:
        process.terminate()
        process.wait(10)
        os.close(mine)
    # Who ends the command ends the code.
    assert json.loads(gateway("-C", folder, "claims", "--json").stdout) == []
