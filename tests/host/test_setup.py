"""`edge-gateway init --tls` and `tls`: certificates, and a broker that uses them."""

import json
import os
import socket
import ssl

import pytest
from brokers import Pki
from gateway_kit import broker_running, domain_bytes, free_port, gateway, wait_until

from edge_agent.config import Config
from gateway import ca
from gateway.cli import opened
from gateway.config import GatewayConfig
from gateway.setup import first_free, port_free


@pytest.fixture
def domain(tmp_path):
    path = tmp_path / "motion.domain"
    path.write_bytes(domain_bytes())
    return path


def init(folder, *more, check=True):
    arguments = ["init", folder, "--tls", "--port", free_port(), "--device-port", free_port()]
    return gateway(*arguments, *more, "--json", check=check)


def handshake(port, authority, name="localhost"):
    """The broker's certificate, after a handshake that checks it."""
    context = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection(("127.0.0.1", port), 5) as sock,
        context.wrap_socket(sock, server_hostname=name) as secure,
    ):
        return secure.getpeercert(True)


def test_init_finds_out_names_and_ports(tmp_path, domain):
    found = json.loads(init(tmp_path / "gw", "--domain", domain).stdout)
    tls = found["tls"]
    assert set(ca.found_names()) == set(tls["names"])
    assert {"localhost", "127.0.0.1", socket.gethostname().partition(".")[0]} <= set(tls["names"])
    assert tls["host"] == ca.found_names()[0]
    assert tls["own_authority"] and 5 * 365 - 2 <= tls["days_left"] <= 5 * 365
    status = json.loads(gateway("-C", tmp_path / "gw", "status", "--json").stdout)
    assert status["certificate_days"] == tls["days_left"]
    for name in ("ca.key", "server.key"):
        assert (tmp_path / "gw" / "tls" / name).stat().st_mode & 0o077 == 0


def test_a_port_in_use_is_passed_over():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert not port_free(port)
        assert first_free(port) > port
        assert first_free(port, taken=[port + 1]) > port + 1


def test_a_broker_with_these_files_proves_itself(tmp_path, domain):
    folder = tmp_path / "gw"
    init(folder, "--domain", domain, "--name", "pump-house.example")
    config = GatewayConfig(folder)
    with broker_running("mosquitto", folder, config.port):
        der = handshake(config.devices.port, folder / "tls" / "ca.crt", "pump-house.example")
        assert (
            ca.fingerprint(ca.load(config.devices.cert)).hex()
            == (json.loads(gateway("-C", folder, "tls", "--json").stdout)["fingerprint"])
        )
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            handshake(config.devices.port, folder / "tls" / "ca.crt", "other.example")
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(config.devices.port, Pki(tmp_path).ca)
        # A renewed certificate is in use at once, under the same authority and names.
        gateway("-C", folder, "tls", "--renew")
        authority = folder / "tls" / "ca.crt"
        port = config.devices.port
        wait_until(lambda: handshake(port, authority, "pump-house.example") != der, 5)


def test_a_renewed_certificate_changes_nothing_that_devices_were_told(tmp_path):
    folder = tmp_path / "gw"
    for first in ("192.0.2.77", "fd00::77", "pi.example"):
        init(folder, "--name", first)
        names = set(json.loads(gateway("-C", folder, "tls", "--json").stdout)["names"])
        gateway("-C", folder, "tls", "--renew")
        found = json.loads(gateway("-C", folder, "tls", "--json").stdout)
        assert found["host"] == GatewayConfig(folder).devices.host == first
        assert set(found["names"]) == names
        folder.rename(tmp_path / first)


def test_device_files_name_the_authority_or_the_certificate(tmp_path, domain):
    folder = tmp_path / "gw"
    init(folder, "--domain", domain, "--name", "pump-house.example")
    out = tmp_path / "devices"
    out.mkdir()
    gateway("-C", folder, "enrol", "a", "--out", out / "a.json")
    gateway("-C", folder, "enrol", "b", "--out", out / "b.json", "--pin")
    a, b = Config.load(str(out / "a.json")), Config.load(str(out / "b.json"))
    devices = GatewayConfig(folder).devices
    assert (a.broker.host, a.broker.port) == ("pump-house.example", devices.port)
    assert (out / a.broker.tls.ca).read_bytes() == devices.ca.read_bytes()
    assert b.broker.tls.fingerprint == ca.fingerprint(ca.load(devices.cert))
    assert not b.broker.tls.ca
    # Files of two gateways may lie in one folder.
    init(tmp_path / "gw2")
    gateway("-C", tmp_path / "gw2", "enrol", "c", "--out", out / "c.json")
    c = Config.load(str(out / "c.json"))
    assert c.broker.tls.ca != a.broker.tls.ca


def test_an_owners_certificate_is_taken(tmp_path, domain):
    pki = Pki(tmp_path)
    certificate, key, fingerprint = pki.issue("broker", "gw.example")
    own = ["--tls-ca", pki.ca, "--tls-cert", certificate, "--tls-key", key]
    found = json.loads(init(tmp_path / "gw", *own).stdout)["tls"]
    assert (found["host"], found["fingerprint"]) == ("gw.example", fingerprint)
    assert not found["own_authority"]
    assert not (tmp_path / "gw" / "tls" / "ca.key").exists()
    refused = gateway("-C", tmp_path / "gw", "tls", "--renew", check=False)
    assert refused.returncode == 2 and "Ask the authority" in refused.stderr


@pytest.mark.parametrize("fault", ["key", "authority", "name", "missing"])
def test_a_certificate_that_will_not_do_is_refused(tmp_path, fault):
    pki, other = Pki(tmp_path), Pki(tmp_path, "other")
    certificate, key, _ = pki.issue("broker", "gw.example")
    own = {"--tls-ca": pki.ca, "--tls-cert": certificate, "--tls-key": key}
    more, word = [], ""
    if fault == "key":
        own["--tls-key"], word = pki.issue("second", "gw.example")[1], "not the key"
    elif fault == "authority":
        own["--tls-ca"], word = other.ca, "did not sign"
    elif fault == "name":
        more, word = ["--name", "pi.local"], "not for pi.local but for gw.example"
    else:
        del own["--tls-key"]
        word = "Give all three"
    done = init(
        tmp_path / "gw", *(part for pair in own.items() for part in pair), *more, check=False
    )
    assert done.returncode == 2 and word in done.stderr
    assert not (tmp_path / "gw").exists()


def test_tls_is_added_to_a_gateway_that_has_none(tmp_path):
    gateway("init", tmp_path / "gw", "--port", free_port())
    refused = gateway("-C", tmp_path / "gw", "tls", check=False)
    assert refused.returncode == 2 and "--make" in refused.stderr
    found = json.loads(
        gateway("-C", tmp_path / "gw", "tls", "--make", "--name", "pi.local", "--json").stdout
    )
    assert found["host"] == "pi.local"
    text = (tmp_path / "gw" / "mosquitto" / "mosquitto.conf").read_text()
    assert f"listener {found['port']}\n" in text and "use_username_as_clientid true" in text


def test_a_folder_can_be_moved(tmp_path, domain):
    """Paths in gateway.json are relative to it."""
    init(tmp_path / "gw", "--domain", domain)
    os.rename(tmp_path / "gw", tmp_path / "moved")
    with opened(tmp_path / "moved") as (config, _, _registry):
        assert config.devices.ca.exists()
    assert "moved" not in (tmp_path / "moved" / "gateway.json").read_text()
