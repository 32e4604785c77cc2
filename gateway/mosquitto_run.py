"""`edge-gateway mosquitto`: mosquitto as a child, with what it refuses counted.

mosquitto runs with this gateway's files and its finest log, which comes through a pipe and
ends here: `broker_log` counts the refusals, warnings and errors go on to standard error.
The counts are in `broker.json` and `broker.prom` of the gateway's folder, which
`edge-gateway status` reads, and go on over restarts.

The pipe is read by a thread that does nothing else, or a broker with much to say would wait
for it. Every few seconds the broker is asked for a login; while it answers, the service
manager hears that it is alive.
"""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

from edge_agent.cpython.notify import Notifier
from edge_agent.errors import ConfigError, StoreError
from gateway.broker_log import Refusals
from gateway.config import GatewayConfig

PLACES = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/sbin"
WRITE_S, PROBE_S = 1.0, 10.0

log = logging.getLogger("edge_gateway")


def find() -> str:
    """Where mosquitto is. StoreError when it is not installed."""
    found = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":" + PLACES)
    if found is None:
        raise StoreError("is not installed", "mosquitto", "sudo apt install mosquitto")
    return found


class Watcher:
    """Reads the log of one mosquitto and keeps the counts in the folder."""

    def __init__(self, config: GatewayConfig) -> None:
        self._folder = config.folder
        self.refusals = Refusals(config.root, frozenset({config.user}))
        try:
            self.refusals.restore(json.loads((self._folder / "broker.json").read_text()))
        except (OSError, ValueError):
            pass
        self._written = ""
        self.running = threading.Event()

    def read(self, pipe: int) -> None:
        """Until the pipe ends."""
        rest = b""
        while chunk := os.read(pipe, 65536):
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-4096:]
            now = int(time.time())
            for line in lines:
                if self.refusals.line(line, now):
                    sys.stderr.buffer.write(line + b"\n")
                    if line.endswith(b" running"):
                        self.running.set()
            sys.stderr.buffer.flush()

    def write(self) -> None:
        """broker.json and broker.prom, when something changed."""
        text = json.dumps(self.refusals.as_dict(), indent=1) + "\n"
        if text == self._written:
            return
        self._written = text
        for name, content in (("broker.json", text), ("broker.prom", self.refusals.prometheus())):
            part = self._folder / f".{name}.part"
            part.write_text(content)
            part.replace(self._folder / name)


def answers(config: GatewayConfig) -> bool:
    """Whether the broker takes the gateway's own login. MQTT by hand: two packets."""
    fields = b"\0\x04MQTT\x04\xc2\0\x0a"
    for text in (f"gateway-probe-{os.getpid()}", config.user, config.password):
        raw = text.encode()
        fields += len(raw).to_bytes(2, "big") + raw
    try:
        with socket.create_connection(("127.0.0.1", config.port), 5) as sock:
            sock.sendall(b"\x10" + bytes([len(fields)]) + fields)
            reply = sock.recv(4)
            sock.sendall(b"\xe0\0")
            return reply == b"\x20\x02\0\0"
    except OSError:
        return False


def serve(config: GatewayConfig) -> int:
    """Run until SIGTERM; mosquitto's exit status when it ends by itself."""
    conf = (config.mosquitto / "mosquitto.conf").resolve()
    if not conf.exists():
        raise ConfigError("is not there", str(conf), "Run: edge-gateway enrol, or tls")
    notifier, watcher = Notifier(), Watcher(config)
    process = subprocess.Popen(  # noqa: S603
        [find(), "-c", str(conf), "-v"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    reader = threading.Thread(target=watcher.read, args=(process.stderr.fileno(),), daemon=True)
    reader.start()
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    ready, probe_at = False, 0.0
    try:
        while process.poll() is None and not told.wait(WRITE_S if ready else 0.05):
            if not ready and watcher.running.is_set():
                ready = True
                notifier.ready()
            now = time.monotonic()
            if ready and now >= probe_at:
                probe_at = now + PROBE_S
                if config.tls or answers(config):
                    notifier.beat()
                else:
                    log.warning("mosquitto does not answer a login")
            watcher.write()
    finally:
        notifier.stopping()
        if process.poll() is None:
            process.terminate()
        code = process.wait()
        reader.join(5)
        watcher.write()
    return 0 if told.is_set() else code or 1
