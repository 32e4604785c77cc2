"""The broker edge: reads frames, hands batches to custody, sends what it answers.

One thread, one loop. A batch closes when it holds `batch` frames or its first frame has
waited `batch_ms`; then: judge, commit, acknowledgements out, PUBACK. Nothing is PUBACKed
before its commit, so a broker keeps at most its in-flight window for us and holds the
rest back: that is the back-pressure, and nothing here queues without bound.

When a commit fails the connection is dropped and opened again after a pause: unacknowledged
messages come again, from the broker or from the device, and custody has undone the batch.
A message that breaks the code itself is counted, kept as a sample and PUBACKed, so that it
cannot come round for ever; the device still holds the record, because no custody
acknowledgement names it.
"""

import errno
import logging
import random
import select
import signal
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.errors import LinkError, StoreError
from gateway.client import BatchClient
from gateway.config import GatewayConfig
from gateway.custody import Custody
from gateway.plan import Plan
from gateway.rounds import Rounds

log = logging.getLogger("edge_gateway")

BACKOFF_S = (0.2, 30.0)
# Merging and housekeeping wait for a quiet moment, but not for ever.
IDLE_MERGE_S, BUSY_MERGE_S = 2.0, 10.0

Message = tuple[str, bytes, int]


def _wall_ms() -> int:
    return int(time.time() * 1000)


def _now() -> tuple[int, int]:
    """Milliseconds of UTC, and of a clock that does not go back."""
    return _wall_ms(), int(time.monotonic() * 1000)


class Bridge:
    """Runs one gateway until `stop` is called.

    config: host, port, user, password, tls, keepalive_s, batch, batch_ms are read.
    housekeeping: called now and then while nothing arrives, with the wall time in ms.
    beat: called every few seconds while the loop is alive, with how the connection is.
    rounds: carries mail to devices; None: nobody has any.
    """

    def __init__(
        self,
        config: GatewayConfig,
        custody: Custody,
        housekeeping: "Callable[[int], None] | None" = None,
        rounds: "Rounds | None" = None,
    ) -> None:
        self.config = config
        self.custody = custody
        self.counters = custody.counters
        self.housekeeping = housekeeping
        self.rounds = rounds
        self.beat: Callable[[str], None] = lambda state: None
        self.online: dict[str, bool] = {}
        self._topics: dict[bytes, str] = {}
        self._pending: list[Message] = []
        self._first = 0.0
        self._stopping = False
        self._connected = False
        self._refused = ""
        self._merged_at = time.monotonic()
        self._news_at = 0.0
        self._random = random.Random()  # noqa: S311
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        self.client = self._client()

    def _client(self) -> BatchClient:
        config = self.config
        client = BatchClient(
            CallbackAPIVersion.VERSION2,
            client_id=config.user,
            clean_session=False,
            protocol=paho.MQTTv311,
            manual_ack=True,
        )
        client.username_pw_set(config.user, config.password)
        if config.tls is not None:
            client.tls_set(config.tls.get("ca"), config.tls.get("cert"), config.tls.get("key"))
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    # -- callbacks ------------------------------------------------------------------

    def _on_connect(
        self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _props: Any
    ) -> None:
        if reason.is_failure:
            self._refused = str(reason)
            return
        self._connected = True
        self.counters.notes.pop("broker", None)
        self.custody.begin_session()
        if self.rounds is not None:
            self.rounds.new_session()
        self.counters.add({"connects": 1})
        root = self.config.root
        topics = [(f"{root}/+/up", 1), (f"{root}/+/state", 0)]
        if self.rounds is not None:
            topics.append((f"{root}/+/judge", 1))
        client.subscribe(topics)
        log.info("connected to %s:%d", self.config.host, self.config.port)

    def _on_disconnect(
        self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _props: Any
    ) -> None:
        if self._connected and not self._stopping:
            log.warning("connection to the broker ended: %s", reason)
        self._connected = False

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        """What BatchClient leaves to paho."""
        try:
            topic = message.topic.encode()
        except UnicodeDecodeError:
            topic = b""
        self._arrived(topic, bytes(message.payload), message.mid if message.qos else 0)

    def _arrived(self, raw: bytes, payload: bytes, mid: int) -> None:
        topic = self._topics.get(raw)
        if topic is None:
            topic = raw.decode("utf-8", "replace")
            if len(self._topics) < 10_000:
                self._topics[raw] = topic
        if topic.endswith("/state"):
            self._note_state(topic, payload)
            if mid:
                self.client.ack(mid, 1)
            return
        if not self._pending:
            self._first = time.monotonic()
        self._pending.append((topic, payload, mid))

    def _wanted(self) -> bool:
        return len(self._pending) < self.config.batch

    def _note_state(self, topic: str, payload: bytes) -> None:
        agent = topic[len(self.config.root) + 1 : -len("/state")]
        if len(agent) == 16 and (agent in self.online or len(self.online) < 100_000):
            self.online[agent] = payload == b"online"
            if self.rounds is not None and payload == b"offline":
                self.rounds.gone(agent)

    # -- the loop -------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `stop`. StoreError when the database is damaged."""
        pause = 0.0
        failures = 0
        while not self._stopping:
            if pause:
                self._sleep(pause)
                if self._stopping:
                    break
            try:
                self._connect()
                failures = 0
                self._serve()
            except (OSError, LinkError) as error:
                log.warning("broker %s:%d: %s", self.config.host, self.config.port, error)
                self._failed(error)
            except StoreError as error:
                self.counters.add({"commit_failures": 1})
                log.error("%s", error)
                if error.code == errno.EUCLEAN:
                    raise
            finally:
                self._drop()
            failures += 1
            low, high = BACKOFF_S
            pause = min(high, low * 2 ** min(failures - 1, 10))
            pause *= 0.5 + self._random.random() / 2
        self._end()

    def stop(self, *_: Any) -> None:
        """Finish the batch at hand and return from `run`. Safe in a signal handler."""
        self._stopping = True
        try:
            self._wake_w.send(b"x")
        except OSError:
            pass

    def stop_on_signals(self) -> None:
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)

    def _connect(self) -> None:
        self._refused = ""
        self._connected = False
        self.client.connect(self.config.host, self.config.port, self.config.keepalive_s)
        deadline = time.monotonic() + 10
        while not self._connected:
            self._turn(0.2)
            if self._refused:
                raise LinkError("refused", self._refused)
            if self.client.socket() is None:
                raise LinkError("refused", "the broker closed the connection: check the password")
            if time.monotonic() > deadline:
                raise LinkError("timeout", "no CONNACK")
            if self._stopping:
                return

    def _serve(self) -> None:
        misc_at = 0.0
        while self._connected and not self._stopping:
            now = time.monotonic()
            wait = 1.0
            if self._pending:
                wait = self._first + self.config.batch_ms / 1000 - now
                if wait <= 0 or len(self._pending) >= self.config.batch:
                    self._flush()
                    continue
            self._turn(wait)
            if now - misc_at >= 1.0:
                misc_at = now
                self.beat("connected")
                self.client.loop_misc()
                self._mail()
                self._idle(now)

    def _turn(self, wait: float) -> None:
        """Wait for the socket; read what is there, up to a batch; write what is due."""
        sock = self.client.socket()
        if sock is None:
            self._connected = False
            return
        client = self.client
        writers = [sock] if client.want_write() else []
        if client.buffered():
            wait = 0
        ready, writable, _ = select.select([sock, self._wake_r], writers, [], wait)
        if writable:
            client.loop_write()
        if sock in ready or client.buffered():
            client.take(self._arrived, self._wanted)
        if self._wake_r in ready:
            self._wake_r.recv(64)

    def _flush(self) -> None:
        """Turn the pending batch into a commit and its acknowledgements."""
        pending, self._pending = self._pending, []
        messages = [(topic, payload) for topic, payload, _ in pending]
        if self.rounds is not None:
            messages = [one for one in messages if not self.rounds.judged(*one)]
        try:
            if self.rounds is not None and len(messages) < len(pending):
                self.rounds.note_judgements(*_now())
            self._process(messages)
        except StoreError:
            raise
        except Exception:
            log.exception("a batch of %d broke; taking its messages one by one", len(pending))
            for message in messages:
                self._process_alone(message)
        for _, _, mid in pending:
            if mid:
                self.client.ack(mid, 1)
        self.client.loop_write()

    def _process(self, messages: list[tuple[str, bytes]]) -> None:
        now_ms = _wall_ms()
        plan = self.custody.judge(messages, now_ms)
        self.custody.commit(plan)
        self.counters.add({"commits": 1})
        self._send(plan)

    def _send(self, plan: Plan) -> None:
        answers = self.custody.answers(plan)
        for topic, payload in answers:
            self.client.publish(topic, payload, qos=1)
        self.counters.add({"acks": len(answers)})
        if self.rounds is not None:
            self.rounds.heard(plan)
            if plan.hellos:
                self._mail()

    def _mail(self) -> None:
        """Mail that is due. What goes wrong there must not stop custody."""
        if self.rounds is None:
            return
        try:
            now_ms, at_ms = _now()
            boxes = self.rounds.turn(now_ms, at_ms)
            self.rounds.turn_judges(now_ms, at_ms)
        except StoreError:
            raise  # gateway.db itself
        except Exception:
            log.exception("a round with mail broke; going on")
            self.counters.add({"mail_failures": 1})
            return
        for topic, payload in boxes:
            self.client.publish(topic, payload, qos=1)

    def _process_alone(self, message: tuple[str, bytes]) -> None:
        try:
            self._process([message])
        except StoreError:
            raise
        except Exception as error:
            log.exception("one message cannot be processed; it is counted and kept as a sample")
            self.custody.set_aside(message, repr(error), _wall_ms())

    def _idle(self, now: float) -> None:
        wait = BUSY_MERGE_S if self._pending else IDLE_MERGE_S
        if now - self._merged_at >= wait:
            self._merged_at = now
            self.custody.merge()
            if self.housekeeping is not None:
                self.housekeeping(_wall_ms())
        if now - self._news_at >= self.config.metrics_s:
            self._news_at = now
            self._tell()

    def _tell(self) -> None:
        self.counters.gauges["connected"] = int(self._connected)
        self.counters.gauges["devices_online"] = sum(self.online.values())
        self.counters.gauges["streams"] = len(self.custody.streams())
        try:
            self.counters.write(Path(self.config.folder), self.online)
        except OSError as error:
            log.warning("status not written: %s", error)

    # -- ending ---------------------------------------------------------------------

    def _failed(self, error: Exception) -> None:
        """No connection, or the broker refuses us, or is not the one we trust: say so."""
        kind = "broker_untrusted" if isinstance(error, ssl.SSLError) else "broker_failures"
        self.counters.add({kind: 1})
        self.counters.notes["broker"] = str(error)
        self._tell()

    def _sleep(self, seconds: float) -> None:
        self.beat(self.counters.notes.get("broker", "not connected"))
        ready, _, _ = select.select([self._wake_r], [], [], seconds)
        if ready:
            self._wake_r.recv(64)

    def _drop(self) -> None:
        """Close without acknowledging what is pending; a new client forgets everything."""
        if self._stopping and self._connected and self._pending:
            try:
                self._flush()
            except (StoreError, OSError) as error:
                log.error("last batch not committed, not acknowledged: %s", error)
        self._pending = []
        if self._connected:
            self.client.disconnect()
            self.client.loop_write()
        self._connected = False
        sock = self.client.socket()
        if sock is not None:
            sock.close()
        self.client = self._client()

    def _end(self) -> None:
        try:
            self.custody.merge()
        finally:
            self._tell()
            if self.rounds is not None:
                self.rounds.close()
            self._wake_r.close()
            self._wake_w.close()
