"""The embedded broker: for demo and tests, in a process of its own.

iotcore (rumqttd compiled into a wheel) keeps everything in memory, has credentials but no
topic rules, and reads its credentials once. So it listens on loopback only, and when the
credentials file changes (a device was enrolled) this process replaces itself: sessions
and queues go, custody brings every record back. Production uses mosquitto, for which
`gateway.mosquitto` writes the files.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from edge_agent.errors import ConfigError, EdgeError, StoreError
from gateway.config import GatewayConfig
from gateway.files import write_private
from gateway.keys import Registry

# rumqttd disconnects a client that acknowledges out of order; the gateway never does.
INFLIGHT = 200
PAYLOAD_MAX = 4096
POLL_S = 0.25
RESTART_S = 0.5

log = logging.getLogger("edge_gateway")


def toml(port: int, users: dict[str, str]) -> str:
    """rumqttd's configuration: one MQTT 3.1.1 listener on loopback with these users.

    Names and passwords are hex digits and "gateway-" only, so nothing needs quoting.
    """
    lines = [
        "id = 0",
        "[router]",
        "id = 0",
        "max_connections = 4096",
        f"max_outgoing_packet_count = {INFLIGHT}",
        "max_segment_size = 16777216",
        "max_segment_count = 16",
        "[v4.1]",
        'name = "v4"',
        f'listen = "127.0.0.1:{port}"',
        "next_connection_delay_ms = 1",
        "[v4.1.connections]",
        "connection_timeout_ms = 5000",
        f"max_payload_size = {PAYLOAD_MAX}",
        f"max_inflight_count = {INFLIGHT}",
        "dynamic_filters = true",
        "[v4.1.connections.auth]",
    ]
    lines += [f'"{user}" = "{password}"' for user, password in sorted(users.items())]
    return "\n".join(lines) + "\n"


def users(config: GatewayConfig, registry: Registry) -> dict[str, str]:
    """Who may connect: the gateway, every device in service, and who judges outcomes."""
    found = {config.user: config.password, config.operator: registry.operator_password()}
    for device in registry.devices():
        if device.revoked_ms is None and device.gateway == config.gateway:
            found[device.agent.hex()] = registry.password(device)
    return found


def write_toml(config: GatewayConfig, registry: Registry) -> None:
    """Bring broker.toml up to date; a running broker notices."""
    text = toml(config.port, users(config, registry))
    path = config.broker_toml
    if not path.exists() or path.read_text() != text:
        write_private(path, text)


class Child:
    """The broker as a child of the gateway: started again when it dies, ended with it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stopping = threading.Event()
        self._process = self._start()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "gateway.broker", str(self._path), str(os.getpid())]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603

    def _watch(self) -> None:
        while True:
            code = self._process.wait()
            if self._stopping.is_set():
                return
            log.warning("the broker ended with %d; starting it again", code)
            if self._stopping.wait(RESTART_S):
                return
            self._process = self._start()

    def stop(self) -> None:
        self._stopping.set()
        self._process.terminate()
        self._thread.join(10)


def serve(path: Path, parent: int = 0) -> None:
    """Run the broker that `path` describes until SIGTERM; start again when it changes.

    parent: a process id; when this process is no longer its child, it ends.
    """
    try:
        from iotcore.iotcore import IotCoreBroker
    except ImportError:
        raise ConfigError(
            "iotcore is not installed",
            "broker",
            "pip install 'edge-agent[broker]', or use mosquitto",
        )
    # rumqttd's spans would turn every packet into a log line.
    for name in ("rumqttd", "iotcore", "tracing"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        stamp = _stamp(path)
        native = IotCoreBroker(config_path=str(path))
        native.check_ports()
    except OSError as error:
        raise StoreError(
            f"the broker cannot start ({error})",
            str(path),
            "Choose a free port in gateway.json, or stop what uses it",
            error.errno or 0,
        )
    for number in (signal.SIGTERM, signal.SIGINT):
        # Nothing here outlives the process: leaving at once loses no promise.
        signal.signal(number, lambda *_: os._exit(0))
    threading.Thread(target=native.run_forever, daemon=True).start()
    print(f"broker listening on {', '.join(native.listeners())}", flush=True)
    while True:
        time.sleep(POLL_S)
        if parent and os.getppid() != parent:
            os._exit(0)
        if _stamp(path) != stamp:
            command = [sys.executable, "-m", "gateway.broker", str(path), str(parent)]
            os.execv(sys.executable, command)  # noqa: S606


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_ino


if __name__ == "__main__":
    try:
        serve(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    except EdgeError as error:
        sys.exit(f"broker: {error}")
