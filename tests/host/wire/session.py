"""The device's end of its connection: what an MQTT client library would do."""

from typing import Any

from edge_agent.delivery import OFFLINE
from edge_agent.effects import Publish
from edge_agent.errors import EdgeError, LinkError
from wire.link import Connection, Packet

CONNECT_MS = 40
CONNECT_TIMEOUT_MS = 10_000


class Session:
    """One at a time. `driver` is told of everything; a driver that is gone is not."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.time = device.time
        self.connection: Connection | None = None
        self.closing = ""  # why the agent wants it to end
        self._waiting: dict[int, int] = {}  # publishes without PUBACK

    def lost_power(self) -> None:
        if self.connection is not None:
            self.connection.close("network", quiet=True)
            self.connection = None
        self.closing = ""

    def connect(self, driver: Any) -> None:
        world = self.device.world
        if not self.device.link.up or not world.broker.up:
            wait = 200 if not self.device.link.up else CONNECT_TIMEOUT_MS
            reason = "radio" if not self.device.link.up else "timeout"
            self.time.after(
                wait, lambda: self._tell(driver, driver.core.on_link, False, False, reason)
            )
            return
        self.time.after(CONNECT_MS, lambda: self._connected(driver))

    def _connected(self, driver: Any) -> None:
        if self.device.driver is not driver:
            return
        if not self.device.link.up or not self.device.world.broker.up:
            self._tell(driver, driver.core.on_link, False, False, "network")
            return
        config = driver.config
        connection = Connection(
            self.device.link,
            lambda packet: self._packet(driver, connection, packet),
            lambda reason: self._disconnected(driver, connection, reason),
        )
        self.connection = connection
        self._waiting = {}
        present = self.device.world.broker.connect(
            self.device.agent.hex(),
            connection,
            {config.topic(kind): 1 for kind in ("ack", "box", "cfg")},
            (config.topic("state"), OFFLINE),
        )
        if self.closing:
            connection.close(self.closing)
            return
        self._tell(driver, driver.core.on_link, True, present, "")

    def _tell(self, driver: Any, event: Any, *values: Any) -> None:
        """Hand an event to the agent, unless it is another one by now."""
        if self.device.driver is driver:
            now = driver._now()
            self.device.guard(lambda: driver._perform(event(*values, now)))

    def _disconnected(self, driver: Any, connection: Connection, reason: str) -> None:
        if self.device.driver is not driver or self.connection is not connection:
            return
        self.connection = None
        reason, self.closing = self.closing or reason, ""
        # A client library fails the publishes under way before or after it says that the
        # session has ended.
        waiting = sorted(self._waiting)
        first = self.device.rng.random() < 0.5
        if first:
            self._fail(driver, waiting, reason)
        self._tell(driver, driver.core.on_link, False, False, reason)
        if not first:
            self._fail(driver, waiting, reason)

    def _fail(self, driver: Any, waiting: list[int], reason: str) -> None:
        for effect_id in waiting:
            self._tell(driver, driver.core.on_error, effect_id, LinkError(reason))

    def disconnect(self, reason: str) -> None:
        self.closing = reason
        connection = self.connection
        if connection is not None:
            connection.send_up(("disconnect",))
            self.time.after(self.device.link.latency_ms + 1, lambda: connection.close(reason))

    def publish(self, driver: Any, effect: Publish) -> None:
        self.time.after(0, lambda: self._publish(driver, self.connection, effect))

    def _publish(self, driver: Any, connection: "Connection | None", effect: Publish) -> None:
        if self.device.driver is not driver:
            return

        def send() -> None:
            now = driver._now()
            try:
                if effect.payload is None:
                    payload = driver._reader(effect.ref)()
                    self.device.ledger.publish(payload)
                else:
                    payload = effect.payload
                    driver.egress.check(payload)
                    if effect.kind == "outcome":
                        self.device.ledger.publish(payload)
                if connection is None or not connection.open:
                    raise LinkError("network")
            except EdgeError as error:
                driver._perform(driver.core.on_error(effect.id, error, now))
                return
            self._waiting[effect.id] = now
            packet = ("publish", effect.id, effect.topic, payload, effect.qos, effect.retain)
            connection.send_up(packet)
            if not effect.qos:
                driver._perform(driver.core.on_done(effect.id, None, now))

        self.device.guard(send)

    def _packet(self, driver: Any, connection: Connection, packet: Packet) -> None:
        if self.device.driver is not driver or self.connection is not connection:
            return
        if packet[0] == "puback":
            if self._waiting.pop(packet[1], None) is not None:
                self._tell(driver, driver.core.on_done, packet[1], None)
            return
        _, mid, topic, payload, qos = packet
        self.device.heard.append((topic, payload))
        self.device.message(topic, payload)
        if qos and self.connection is connection:
            connection.send_up(("puback", mid))
