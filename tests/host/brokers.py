"""Real brokers and awkward servers for tests: all on loopback, on free ports."""

import contextlib
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

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
