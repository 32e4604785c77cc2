"""The MQTT link of Linux against real brokers, and servers that only pretend."""

import asyncio
import subprocess
import time

import paho.mqtt.client as paho
import pytest
from brokers import MOSQUITTO, IotCore, Mosquitto, Pki, Server, free_port

from edge_agent.config import Broker
from edge_agent.cpython import link_mqtt
from edge_agent.cpython.link_mqtt import MqttLink
from edge_agent.errors import ConfigError, LinkError

TOPIC, OTHER = "qis/1/a/ack", "qis/1/a/up"


def run(work, seconds=15):
    async def limited():
        return await asyncio.wait_for(work, seconds)

    return asyncio.run(limited())


def make(port, tls=None, username="", password="", client="a", topics=(TOPIC,), **fields):
    fields = {"host": "localhost", "port": port, "connect_timeout_s": 3, **fields}
    if tls is not None:
        fields["tls"] = tls
    return MqttLink(
        Broker(fields), client, username, password, list(topics), ("qis/1/a/state", b"offline"), 8
    )


async def fails(work):
    with pytest.raises(LinkError) as caught:
        await work
    return caught.value


def cut(link):
    """The connection goes without a goodbye, as the broker sees a power cut."""
    sock = link._client.socket()
    link._unwatch(sock)
    sock.close()
    link._misc.cancel()


class Ticker:
    """Notices when the event loop stood still."""

    def __init__(self):
        self.longest = 0.0

    async def __aenter__(self):
        self.task = asyncio.create_task(self.tick())
        return self

    async def __aexit__(self, *exc):
        self.task.cancel()

    async def tick(self):
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            self.longest = max(self.longest, now - last)
            last = now


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory):
    broker = Mosquitto(tmp_path_factory.mktemp("broker"), "allow_anonymous true").start()
    yield broker
    broker.kill()


@pytest.fixture(params=["mosquitto", "iotcore"])
def broker(request, tmp_path):
    if request.param == "mosquitto":
        made = Mosquitto(tmp_path, "allow_anonymous true")
    else:
        made = IotCore(tmp_path, {"a": "secret"})
    yield made.start()
    made.kill()


def user(broker):
    return {"username": "a", "password": "secret"} if isinstance(broker, IotCore) else {}


def test_the_hook_into_paho_exists():
    """`_create_socket` is not public: this says so when a new paho drops it."""
    assert callable(paho.Client._create_socket)
    assert link_mqtt._Client._create_socket is not paho.Client._create_socket


def test_publish_subscribe_and_window(broker):
    async def work():
        link = make(broker.port, **user(broker))
        assert await link.connect() is False
        flying = most = 0
        real = link._on_publish

        def seen(*args):
            nonlocal flying, most
            most = max(most, len(link._pubacks))
            real(*args)

        link._client.on_publish = seen
        payloads = [b"%d" % i for i in range(60)]
        await asyncio.gather(*[link.publish(TOPIC, p) for p in payloads])
        assert 1 < most <= 8, "no more in flight than asked for"
        got = [await link.receive() for _ in payloads]
        assert got == [(TOPIC, p) for p in payloads]
        await link.publish(TOPIC, lambda: b"made when sent", 0)
        assert await link.receive() == (TOPIC, b"made when sent")
        await link.disconnect()
        assert (await fails(link.receive())).reason == "network"
        assert (await fails(link.publish(TOPIC, b"x"))).reason == "network"

    run(work())


def test_the_session_outlives_the_connection(broker):
    async def work():
        link = make(broker.port, **user(broker))
        await link.connect()
        await link.disconnect()
        other = make(broker.port, client="b", topics=(), **user(broker))
        await other.connect()
        for i in range(3):
            await other.publish(TOPIC, b"%d" % i)
        assert await link.connect() is True
        assert [(await link.receive())[1] for _ in range(3)] == [b"0", b"1", b"2"]
        # 2 was taken but never dealt with: `receive` was not called again.
        await asyncio.sleep(0.1)
        cut(link)
        link = make(broker.port, **user(broker))
        assert await link.connect() is True
        assert (await link.receive())[1] == b"2"
        await link.disconnect()
        await link.connect()
        await other.publish(TOPIC, b"3")
        assert (await link.receive())[1] == b"3", "acknowledged by the disconnect before"
        await link.disconnect()
        await other.disconnect()

    run(work())


def test_broker_killed_and_back(broker):
    async def work():
        link = make(broker.port, **user(broker))
        await link.connect()
        receiving = asyncio.create_task(link.receive())
        await asyncio.sleep(0)
        broker.kill()
        assert (await fails(receiving)).reason == "broker"
        assert (await fails(link.publish(TOPIC, b"x"))).reason in ("broker", "network")
        assert (await fails(link.connect())).reason == "broker"
        broker.start()
        await link.connect()
        await link.publish(TOPIC, b"again")
        assert await link.receive() == (TOPIC, b"again")
        await link.disconnect()

    run(work())


def test_publishes_under_way_end_with_the_connection(tmp_path):
    """A broker that never acknowledges, then goes away."""

    def talk(connection):
        connection.recv(1000)
        connection.sendall(b"\x20\x02\x00\x00")
        connection.recv(4)
        connection.settimeout(0.5)
        connection.sendall(b"\x90\x03\x00\x01\x01")
        time.sleep(0.4)
        connection.close()

    async def work():
        server = Server(talk)
        link = make(server.port, topics=(TOPIC,))
        await link.connect()
        results = await asyncio.gather(
            *[link.publish(TOPIC, b"x") for _ in range(12)], return_exceptions=True
        )
        assert all(isinstance(r, LinkError) for r in results)
        assert not link._pubacks
        server.close()

    run(work())


def test_silent_broker_times_out_and_blocks_nothing():
    async def work():
        server = Server(lambda connection: time.sleep(30))
        link = make(server.port, connect_timeout_s=1)
        async with Ticker() as ticker:
            error = await fails(link.connect())
        assert error.reason == "timeout"
        assert "does not answer" in str(error)
        assert ticker.longest < 0.5
        server.close()

    run(work())


def test_silence_in_the_tls_handshake():
    async def work():
        server = Server(lambda connection: time.sleep(30))
        link = make(server.port, tls={"fingerprint": "00" * 32}, connect_timeout_s=1)
        async with Ticker() as ticker:
            error = await fails(link.connect())
        assert error.reason == "network"
        assert ticker.longest < 0.5
        server.close()

    run(work())


def test_keepalive_finds_a_dead_connection():
    def talk(connection):
        connection.recv(1000)
        connection.sendall(b"\x20\x02\x00\x00")
        connection.recv(1000)
        connection.sendall(b"\x90\x03\x00\x01\x01")
        time.sleep(30)

    async def work():
        server = Server(talk)
        link = make(server.port, keepalive_s=1)
        await link.connect()
        start = time.monotonic()
        error = await fails(link.receive())
        assert error.reason in ("timeout", "broker")
        assert time.monotonic() - start < 5
        server.close()

    run(work())


def test_nobody_there():
    async def work():
        error = await fails(make(free_port()).connect())
        assert error.reason == "broker"
        error = await fails(make(1883, host="name.invalid").connect())
        assert error.reason == "network"
        assert "name.invalid" in str(error)

    run(work())


def test_garbage_instead_of_connack():
    async def work():
        server = Server(lambda connection: (connection.recv(1000), connection.sendall(b"HTTP/1.0")))
        error = await fails(make(server.port, connect_timeout_s=2).connect())
        assert error.reason in ("broker", "timeout")
        server.close()

    run(work())


def test_disconnect_while_connecting():
    async def work():
        server = Server(lambda connection: time.sleep(30))
        link = make(server.port)
        connecting = asyncio.create_task(link.connect())
        await asyncio.sleep(0.1)
        await link.disconnect()
        assert (await fails(connecting)).reason == "network"
        server.close()

    run(work(), 2)


def test_refused_subscription():
    def talk(connection):
        connection.recv(1000)
        connection.sendall(b"\x20\x02\x00\x00")
        connection.recv(1000)
        connection.sendall(b"\x90\x03\x00\x01\x80")
        time.sleep(30)

    async def work():
        server = Server(talk)
        error = await fails(make(server.port).connect())
        assert error.reason == "refused"
        assert "subscription" in str(error)
        server.close()

    run(work())


def test_wrong_password(tmp_path):
    passwords = tmp_path / "passwords"
    subprocess.run(
        [MOSQUITTO.replace("sbin", "bin") + "_passwd", "-b", "-c", str(passwords), "a", "right"],
        check=True,
    )
    broker = Mosquitto(tmp_path, "allow_anonymous false", f"password_file {passwords}").start()

    async def work():
        error = await fails(make(broker.port, username="a", password="wrong").connect())
        assert error.reason == "refused"
        assert "wrong" not in str(error)
        good = {"username": "a", "password": "right"}
        link = make(broker.port, **good)
        assert not await link.connect()
        await link.publish(OTHER, b"x")
        await link.disconnect()

    try:
        run(work())
    finally:
        broker.kill()


def test_wrong_password_at_the_embedded_broker(tmp_path):
    broker = IotCore(tmp_path, {"a": "right"}).start()
    try:
        error = run(fails(make(broker.port, username="a", password="wrong").connect()))
        assert error.reason in ("refused", "broker")
    finally:
        broker.kill()


def test_last_will(mosquitto):
    async def work():
        watcher = make(mosquitto.port, client="w", topics=("qis/1/a/state",))
        await watcher.connect()
        link = make(mosquitto.port)
        await link.connect()
        await link.publish("qis/1/a/state", b"online", retain=True)
        assert (await watcher.receive())[1] == b"online"
        cut(link)
        assert (await watcher.receive())[1] == b"offline"
        late = make(mosquitto.port, client="x", topics=("qis/1/a/state",))
        await late.connect()
        assert (await late.receive())[1] == b"offline", "retained"
        await late.disconnect()
        await watcher.disconnect()

    run(work())


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    pki = Pki(folder)
    cert, key, fingerprint = pki.issue("broker")
    broker = Mosquitto(
        folder,
        "allow_anonymous true",
        f"cafile {pki.ca}",
        f"certfile {cert}",
        f"keyfile {key}",
        "require_certificate true",
    )
    broker.start()
    yield broker, pki, fingerprint
    broker.kill()


def test_tls(secure):
    broker, pki, fingerprint = secure
    cert, key, _ = pki.issue("client")
    stranger = Pki(pki.folder, "stranger")

    async def exchange(tls):
        link = make(broker.port, tls)
        await link.connect()
        async with Ticker() as ticker:
            big = [bytes([i]) * 20000 for i in range(20)]
            await asyncio.gather(*[link.publish(TOPIC, p) for p in big])
            assert [(await link.receive())[1] for _ in big] == big
        assert ticker.longest < 1
        await link.disconnect()

    async def work():
        me = {"cert": cert, "key": key}
        await exchange({"ca": pki.ca, **me})
        await exchange({"fingerprint": fingerprint, **me})
        await exchange({"ca": pki.ca, "fingerprint": fingerprint, **me})
        for tls in (
            {"ca": stranger.ca, **me},
            {"fingerprint": "00" * 32, **me},
            {"ca": pki.ca, "fingerprint": "00" * 32, **me},
            {"ca": pki.ca, "server_name": "elsewhere", **me},
        ):
            assert (await fails(make(broker.port, tls).connect())).reason == "refused"
        # TLS 1.3 tells of a missing client certificate only after the handshake.
        error = await fails(make(broker.port, {"ca": pki.ca}).connect())
        assert error.reason in ("refused", "broker")

    run(work(), 30)


def test_tls_files_that_will_not_do(tmp_path):
    with pytest.raises(ConfigError) as caught:
        make(8883, {"ca": str(tmp_path / "missing.pem")})
    assert caught.value.where == "broker.tls"


def test_secrets_are_not_shown():
    assert "secret" not in repr(make(1, username="u", password="secret"))
