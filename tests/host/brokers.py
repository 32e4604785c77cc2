"""Real brokers and awkward servers for tests: all on loopback, on free ports."""

import contextlib
import datetime
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

MOSQUITTO = "/usr/sbin/mosquitto"


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for_port(port, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on {port}")


class Mosquitto:
    """One mosquitto with the given configuration lines; `kill` is SIGKILL."""

    def __init__(self, folder: Path, *lines: str, port: int | None = None):
        if not os.path.exists(MOSQUITTO):
            pytest.fail("mosquitto is not installed; tools/setup.sh installs it")
        self.port = port or free_port()
        self.conf = folder / f"mosquitto-{self.port}.conf"
        self.log = folder / f"mosquitto-{self.port}.log"
        text = [f"listener {self.port} 127.0.0.1", "user root", *lines]
        self.conf.write_text("\n".join(text) + "\n")
        self.process = None

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([MOSQUITTO, "-c", str(self.conf)], stderr=log)
        wait_for_port(self.port)
        return self

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class IotCore:
    """The embedded broker's engine in a process of its own, with the given users."""

    def __init__(self, folder: Path, users: dict[str, str]):
        from gateway.broker import toml

        self.port = free_port()
        self.conf = folder / f"iotcore-{self.port}.toml"
        self.conf.write_text(toml(self.port, users))
        self.process = None

    def start(self):
        command = [sys.executable, "-m", "gateway.broker", str(self.conf)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for_port(self.port)
        return self

    kill = Mosquitto.kill


class Server:
    """A TCP server on a thread; `talk(connection)` plays the broker."""

    def __init__(self, talk):
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.talk = talk
        self.connections = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self):
        while True:
            try:
                connection, _ = self.sock.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection):
        with contextlib.suppress(OSError):
            self.talk(connection)

    def close(self):
        self.sock.close()
        for connection in self.connections:
            connection.close()


class Pki:
    """A test authority and certificates signed by it, as PEM files."""

    def __init__(self, folder: Path, name: str = "ca"):
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test " + name)])
        cert = self._builder(self.name, self.key.public_key())
        cert = cert.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.cert = cert.sign(self.key, hashes.SHA256())
        self.ca = self._write(name + ".pem", self.cert.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject, public_key):
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    def _write(self, name, data):
        path = self.folder / name
        path.write_bytes(data)
        path.chmod(0o600)
        return str(path)

    def issue(self, name, host="localhost"):
        """(certificate path, key path, SHA-256 of the certificate in hex)."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, key.public_key())
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False
        )
        cert = builder.sign(self.key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return (
            self._write(name + ".crt", cert.public_bytes(serialization.Encoding.PEM)),
            self._write(name + ".key", private),
            cert.fingerprint(hashes.SHA256()).hex(),
        )
