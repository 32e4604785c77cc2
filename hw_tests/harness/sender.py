"""A site's own program beside the gateway: sends settings and boxes down to a device.

    with Operator(bench.folder) as operator:
        operator.configure(agent, 7, {6: 2})
        operator.box(agent, 200, b"...")

It logs in as the gateway does, and seals with the gateway's keys. Counters are the time in
milliseconds, as the gateway's own are, so its acks go on being newer than what is sent here;
a message that meets a newer ack is stale, and is sent again by whoever waits for its effect.
"""

import threading
import time
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent import frame as wire
from gateway.cli import opened
from gateway.config import GatewayConfig


class Operator:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = GatewayConfig(folder)
        self._up = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="operator")
        self._client.username_pw_set(self.config.user, self.config.password)
        self._client.on_connect = lambda *_: self._up.set()

    def __enter__(self) -> "Operator":
        self._client.connect("127.0.0.1", self.config.port)
        self._client.loop_start()
        if not self._up.wait(5):
            self._client.loop_stop()
            raise AssertionError("the broker does not answer the operator")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def configure(self, agent: bytes, version: int, settings: "dict[int, int]") -> None:
        self._send(agent, "cfg", wire.Cfg(_now_ms(), version, settings))

    def box(self, agent: bytes, kind: int, body: bytes) -> None:
        self._send(agent, "box", wire.Box(_now_ms(), kind, body, 0))

    def _send(self, agent: bytes, name: str, message: Any) -> None:
        with opened(self.folder) as (_, _, registry):
            keys = registry(agent, 1)
            assert keys is not None
            payload = wire.seal(keys, message)
        topic = f"{self.config.root}/{agent.hex()}/{name}"
        self._client.publish(topic, payload, 1).wait_for_publish(5)


def _now_ms() -> int:
    time.sleep(0.002)  # so that no two have one counter
    return int(time.time() * 1000)
