"""Gateway to gateway: what is believed, what is refused, over real TLS on loopback."""

import asyncio
import contextlib
import os
import socket
import ssl
import time
from pathlib import Path

import cbor2
import pycddl
import pytest
from peer_kit import CRYPTO, Origin, asking, member, strange_server

from edge_agent import cbor, cose
from edge_agent import frame as wire
from edge_agent.errors import ConfigError, StoreError
from edge_agent.outcome import Outcome
from gateway import peers, serve
from gateway.ask import PATH, pinned
from gateway.peers import Desk, PeerError, Rules, answer, ask
from gateway.projection import fingerprint
from gateway.records import read_stored
from gateway.voucher import Facts, make_voucher, open_voucher, with_vector

NOW = 1_800_000_000
DOMAIN = b"\x05" * 8


def reason(call, *arguments):
    with pytest.raises(PeerError) as caught:
        call(*arguments)
    return caught.value.reason


@pytest.fixture(scope="module")
def pair():
    return member(1), member(2)


def desk_for(me, *known, started=NOW - 1000, **kw):
    cards = {card.gateway: card for card in known}
    return Desk(CRYPTO, me.gateway, cards.get, started, **kw)


# -- the desk, without a network ----------------------------------------------------


def test_a_request_is_believed_once(pair):
    a, b = pair
    desk = desk_for(b, a.card)
    asked = ask(CRYPTO, a, b.gateway, "ping", {1: [2, 3]}, NOW, os.urandom(16))
    request = desk.open(asked.data, NOW + 1)
    assert (request.sender, request.op, request.body) == (a.gateway, "ping", {1: [2, 3]})
    assert reason(desk.open, asked.data, NOW + 2) == "replayed"
    sealed = answer(CRYPTO, b, request, "", ["yes"], NOW + 1)
    assert asked.read(CRYPTO, b.card.public, sealed, NOW + 2) == ["yes"]
    assert desk.accepted == {"ping": 1} and desk.refused == {"replayed": 1}


def test_an_answer_fits_one_question_only(pair):
    a, b = pair
    desk = desk_for(b, a.card)
    one = ask(CRYPTO, a, b.gateway, "ping", None, NOW, os.urandom(16))
    two = ask(CRYPTO, a, b.gateway, "ping", None, NOW, os.urandom(16))
    sealed = answer(CRYPTO, b, desk.open(one.data, NOW), "", 7, NOW)
    assert reason(two.read, CRYPTO, b.card.public, sealed, NOW) == "bad-signature"
    assert reason(one.read, CRYPTO, a.card.public, sealed, NOW) == "bad-signature"
    assert reason(one.read, CRYPTO, b.card.public, sealed, NOW + 3600) == "expired"
    assert one.read(CRYPTO, b.card.public, sealed, NOW) == 7
    no = answer(CRYPTO, b, desk.open(two.data, NOW), "not-allowed", 7, NOW)
    with pytest.raises(PeerError, match=r"refused \(not-allowed\)"):
        two.read(CRYPTO, b.card.public, no, NOW)


def signed(who, **changes):
    content = {1: b"\x02" * 8, 2: bytes(16), 3: NOW, 4: NOW + 30, 5: "ping", 6: None}
    for label, value in changes.items():
        content[int(label[1:])] = value
    header = {cose.HDR_ALG: cose.ALG_EDDSA, cose.HDR_KID: who.gateway, cose.HDR_TYP: 65020}
    aad = cbor.encode(["qis", 1, "request"])
    return cose.sign1(CRYPTO, who.seed, header, cbor.encode(content), aad)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"_1": b"\x03" * 8}, "wrong-audience"),
        ({"_2": b"short"}, "bad-field"),
        ({"_2": None}, "bad-field"),
        ({"_3": "now"}, "bad-field"),
        ({"_3": NOW - 70, "_4": NOW - 10}, "expired"),
        ({"_3": NOW - 1, "_4": NOW}, "expired"),
        ({"_4": NOW + 3600}, "too-far-ahead"),
        ({"_3": NOW + 600, "_4": NOW + 630}, "too-far-ahead"),
        ({"_5": 9}, "bad-field"),
        ({"_5": "format the disk"}, "not-allowed"),
    ],
)
def test_a_wrong_request_has_a_reason(pair, changes, expected):
    a, b = pair
    desk = desk_for(b, a.card)
    assert reason(desk.open, signed(a, **changes), NOW) == expected
    assert desk.refused == {expected: 1}
    desk.open(signed(a), NOW)  # the desk is none the worse


def test_strangers_the_revoked_and_the_forged(pair):
    a, b = pair
    c = member(3)
    desk = desk_for(b, a.card)
    assert reason(desk.open, signed(c), NOW) == "unknown-peer"
    forged = member(1)  # the id of a, another key
    assert reason(desk.open, signed(forged), NOW) == "bad-signature"
    data = bytearray(signed(a))
    data[-1] ^= 1
    assert reason(desk.open, bytes(data), NOW) == "bad-signature"
    a.card.revoked_ms = 1
    try:
        assert reason(desk.open, signed(a), NOW) == "revoked"
    finally:
        a.card.revoked_ms = None
    assert reason(desk.open, b"\xd2" * (peers.REQUEST_MAX + 1), NOW) == "too-long"


def test_every_truncation_and_flipped_byte_is_refused(pair):
    a, b = pair
    good = signed(a)
    desk = desk_for(b, a.card)
    for cut in range(len(good)):
        with pytest.raises(PeerError):
            desk.open(good[:cut], NOW)
    for at in range(0, len(good), 3):
        bad = bytearray(good)
        bad[at] ^= 0x11
        with pytest.raises(PeerError):
            desk.open(bytes(bad), NOW)
    assert sum(desk.refused.values()) == len(good) + len(range(0, len(good), 3))


def test_what_was_asked_before_the_process_began_is_refused(pair):
    """Nonces do not outlive the process, so requests must not either."""
    a, b = pair
    asked = ask(CRYPTO, a, b.gateway, "ping", None, NOW, os.urandom(16))
    desk_for(b, a.card).open(asked.data, NOW)
    assert reason(desk_for(b, a.card, started=NOW + 1).open, asked.data, NOW + 1) == "expired"


def test_the_rate_is_limited_per_peer_and_comes_back(pair):
    a, b = pair
    c = member(3)
    a.card.rules = {"per_minute": 60, "burst": 5}
    try:
        desk = desk_for(b, a.card, c.card)

        def once(who, now):
            asked = ask(CRYPTO, who, b.gateway, "ping", None, int(now), os.urandom(16))
            return desk.open(asked.data, now)

        for _ in range(5):
            once(a, NOW)
        assert reason(once, a, NOW) == "rate-limited"
        once(c, NOW)
        once(a, NOW + 1.5)
        desk.charge(a.gateway, 0.5, NOW + 1.5)
        assert reason(desk.charge, a.gateway, 0.5, NOW + 1.5) == "rate-limited"
    finally:
        a.card.rules = {}


def test_rules_name_what_is_wrong_with_them():
    rules = Rules.parse({"ops": ["fetch"], "domains": [DOMAIN.hex()], "group": 3, "noise": 2})
    assert rules.allow("fetch", DOMAIN) and not rules.allow("ping", DOMAIN)
    assert not rules.allow("fetch", b"\x06" * 8)
    for wrong in (
        {"ops": ["everything"]}, {"domains": "all"}, {"burst": 0}, {"noise": 500},
        {"per_minute": True}, {"colour": 1},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"rules\." + next(iter(wrong))):
            Rules.parse(wrong)


# -- vouchers -----------------------------------------------------------------------


def stored(encrypt):
    keys = wire.DeviceKeys(CRYPTO, b"\x0a" * 8, bytes(range(32)), 4)
    vector = bytes(range(64))
    record = wire.OutcomeRecord(
        b"jrnl", 7, 1, 5000, 0, DOMAIN, Outcome(vector, 2, 180), fingerprint(DOMAIN, vector)
    )
    frame = wire.seal(keys, record, encrypt=encrypt)
    return frame, record, read_stored(frame, lambda agent, generation: bytes(range(32)))


@pytest.mark.parametrize("encrypt", [False, True])
def test_a_voucher_carries_the_payload_of_the_device(pair, encrypt):
    a, _ = pair
    frame, record, found = stored(encrypt)
    assert found.agent == b"\x0a" * 8
    assert found.record.outcome.vector == record.outcome.vector
    facts = Facts(found.agent, wire.outcome_id(frame), NOW * 1000, 40, (0, 2))
    raw = make_voucher(CRYPTO, a.gateway, a.seed, found.payload, facts)
    assert cose.parse(raw).payload == found.payload
    assert len(raw) < 400
    voucher = open_voucher(CRYPTO, a.gateway, a.card.public, raw)
    assert voucher.facts == facts
    assert voucher.record.outcome.label == 2 and voucher.record.seq == 7


def test_a_third_party_verifies_a_voucher_with_another_library(pair):
    import cwt

    a, _ = pair
    frame, _, found = stored(False)
    facts = Facts(found.agent, wire.outcome_id(frame), NOW * 1000, 40)
    raw = make_voucher(CRYPTO, a.gateway, a.seed, found.payload, facts)
    key = cwt.COSEKey.new({1: 1, 3: -8, -1: 6, 2: a.gateway, -2: a.card.public})
    aad = cbor.encode(["qis", 1, "voucher"])
    assert cwt.COSE.new().decode(raw, key, external_aad=aad) == found.payload


def test_vouchers_that_are_not_believed(pair):
    a, b = pair
    frame, _, found = stored(False)
    facts = Facts(found.agent, wire.outcome_id(frame), NOW * 1000, 40)
    raw = make_voucher(CRYPTO, a.gateway, a.seed, found.payload, facts)

    def opened(data, who=a, gateway=a.gateway):
        return open_voucher(CRYPTO, gateway, who.card.public, data)

    assert reason(opened, raw, b) == "bad-signature"
    assert reason(opened, raw, a, b.gateway) == "unknown-peer"
    assert reason(opened, raw + bytes(2000)) == "too-long"
    for cut in range(0, len(raw), 7):
        with pytest.raises(PeerError):
            opened(raw[:cut])
    other = make_voucher(CRYPTO, a.gateway, a.seed, b"\xa1\x01\x02", facts)
    assert reason(opened, other) == "bad-field"
    # A vector that its fingerprint does not fit is the origin's fault.
    content = cbor.decode(found.payload)
    content[8] = bytes(64)
    mixed = make_voucher(CRYPTO, a.gateway, a.seed, cbor.encode(content), facts)
    assert reason(opened, mixed) == "bad-field"
    noisy = with_vector(found.payload, DOMAIN, bytes(64))
    made = make_voucher(CRYPTO, a.gateway, a.seed, noisy, facts)
    assert opened(made).record.outcome.vector == bytes(64)


# -- over TLS -----------------------------------------------------------------------


async def echo(request):
    return request.body


async def refused_with(asker, peer, op="ping", body=None, deadline_s=3.0, endpoint=""):
    with pytest.raises(PeerError) as caught:
        await asker.ask(peer, op, body, deadline_s, endpoint)
    return caught.value


def test_ask_and_answer(pair, tmp_path):
    a, b = pair

    async def story():
        async with Origin(b, tmp_path, [a.card], {"ping": echo}) as origin, asking(a) as asker:
            assert await asker.ask(b.card, "ping", [1, b"two"], 3.0) == [1, b"two"]
            started = time.perf_counter()
            for number in range(20):
                assert await asker.ask(b.card, "ping", number, 3.0) == number
            assert (time.perf_counter() - started) / 20 < 0.1
            assert origin.rows[0] == (a.gateway, "ping", "")
            assert (await refused_with(asker, b.card, "fetch")).detail == "not-allowed"
            assert origin.rows[-1] == (a.gateway, "fetch", "not-allowed")
            assert asker.failed == {"refused": 1}

    asyncio.run(story())


def test_only_the_pinned_certificate_and_only_tls_1_3(pair, tmp_path):
    a, b = pair
    impostor = member(2)

    async def story():
        async with Origin(b, tmp_path, [a.card], {"ping": echo}), asking(a) as asker:
            impostor.card.endpoint = b.card.endpoint
            error = await refused_with(asker, impostor.card)
            assert error.reason == "wrong-certificate"
            host, port = b.card.endpoint.split(":")
            context = pinned(b.card.certificate)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection(host, int(port), ssl=context)
            assert await asker.ask(b.card, "ping", 1, 3.0) == 1

    asyncio.run(story())


def test_the_listener_refuses_and_counts(pair, tmp_path):
    a, b = pair
    c = member(3)

    async def story():
        import httpx

        known = [a.card]
        async with (
            Origin(b, tmp_path, known, {"ping": echo}) as origin,
            asking(a) as asker,
            asking(c) as stranger,
            asking(a, lambda: time.time() - 300) as late,
            httpx.AsyncClient(verify=pinned(b.card.certificate), trust_env=False) as client,
        ):
            assert (await refused_with(stranger, b.card)).detail == "unknown-peer"
            assert (await refused_with(late, b.card)).detail == "expired"
            url = f"https://{b.card.endpoint}{PATH}"
            asked = ask(CRYPTO, a, b.gateway, "ping", None, int(time.time()), os.urandom(16))
            assert (await client.post(url, content=asked.data)).status_code == 200
            got = await client.post(url, content=asked.data)
            assert (got.status_code, got.text) == (403, "replayed")
            other = ask(CRYPTO, a, c.gateway, "ping", None, int(time.time()), os.urandom(16))
            got = await client.post(url, content=other.data)
            assert (got.status_code, got.text) == (403, "wrong-audience")
            got = await client.post(url, content=bytes(peers.REQUEST_MAX + 1))
            assert (got.status_code, got.text) == (413, "too-long")

            async def endless():
                while True:
                    yield bytes(8192)

            with contextlib.suppress(httpx.HTTPError):  # the connection is closed on it
                assert (await client.post(url, content=endless())).status_code == 413
            got = await client.post(url, content=b"garbage")
            assert (got.status_code, got.text) == (400, "not-cbor")
            assert (await client.get(url)).status_code == 405
            a.card.revoked_ms = 1
            try:
                assert (await refused_with(asker, b.card)).detail == "revoked"
            finally:
                a.card.revoked_ms = None
            assert origin.desk.refused == {
                "unknown-peer": 1, "expired": 1, "replayed": 1, "wrong-audience": 1,
                "too-long": 2, "not-cbor": 1, "revoked": 1,
            }  # fmt: skip
            assert await asker.ask(b.card, "ping", "still here", 3.0) == "still here"

    asyncio.run(story())


def test_a_caller_that_never_finishes_is_let_go(pair, tmp_path, monkeypatch):
    a, b = pair
    monkeypatch.setattr(serve, "BODY_S", 0.3)

    async def story():
        async with Origin(b, tmp_path, [a.card], {"ping": echo}) as origin, asking(a) as asker:
            host, port = b.card.endpoint.split(":")
            reader, writer = await asyncio.open_connection(
                host, int(port), ssl=pinned(b.card.certificate)
            )
            writer.write(
                f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\nab".encode()
            )
            assert await asker.ask(b.card, "ping", 1, 3.0) == 1
            assert b" 408 " in await asyncio.wait_for(reader.readline(), 3)
            writer.close()
            assert origin.desk.refused == {"slow": 1}

    asyncio.run(story())


def test_a_handler_that_breaks_is_our_fault_and_stays_inside(pair, tmp_path):
    a, b = pair

    async def broken(request):
        raise ZeroDivisionError("secret detail")

    async def story():
        async with Origin(b, tmp_path, [a.card], {"ping": broken}) as origin, asking(a) as asker:
            error = await refused_with(asker, b.card)
            assert (error.reason, error.detail) == ("refused", "internal")
            assert origin.desk.refused == {"internal": 1}

    asyncio.run(story())


async def silent(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(30)


async def garbage(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\ngarbage")
    await writer.drain()


async def not_http(reader, writer):
    writer.write(os.urandom(500))
    await writer.drain()


async def drip(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def flood(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        await writer.drain()


async def hang_up(reader, writer):
    await reader.readuntil(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("behaviour", "reasons"),
    [
        (silent, {"silent"}),
        (garbage, {"not-cbor"}),
        (not_http, {"broken"}),
        (drip, {"silent"}),
        (flood, {"too-long"}),
        (hang_up, {"broken"}),
    ],
)
def test_an_origin_that_misbehaves_costs_its_deadline_at_most(pair, tmp_path, behaviour, reasons):
    a, b = pair

    async def story():
        context = b.write(tmp_path)
        async with strange_server(context, behaviour) as (endpoint, seen), asking(a) as asker:
            started = time.monotonic()
            error = await refused_with(asker, b.card, deadline_s=1.0, endpoint=endpoint)
            assert error.reason in reasons
            assert time.monotonic() - started < 1.6
            assert seen["connections"] == 1
            assert asker.failed == {error.reason: 1}

    asyncio.run(story())


def test_nobody_there(pair):
    a, b = pair

    async def story():
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            endpoint = f"127.0.0.1:{sock.getsockname()[1]}"
            async with asking(a) as asker:
                error = await refused_with(asker, b.card, endpoint=endpoint)
                assert error.reason == "unreachable"
                bad = await refused_with(asker, b.card, endpoint="not an address")
                assert bad.reason in ("broken", "unreachable")

    asyncio.run(story())


def test_a_port_in_use_is_said(pair, tmp_path):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        with pytest.raises(StoreError, match="Choose another port"):
            serve.bind("127.0.0.1", sock.getsockname()[1])


# -- SPEC.md, section 18 ------------------------------------------------------------

CDDL = (Path(__file__).resolve().parents[2] / "gateway" / "peers.cddl").read_text()


def fits(rule, data):
    """Read by other people's code."""
    pycddl.Schema(f"start = {rule}\n{CDDL}").validate_cbor(data)


def test_messages_are_as_the_cddl_says(pair):
    a, b = pair
    desk = desk_for(b, a.card)
    bodies = {
        "fetch": ([[bytes(16)], [DOMAIN, bytes(64), 5, [1, 2]]], [[b"v"], [[bytes(16), "gone"]]]),
        "ping": (None, ["0.1", NOW]),
        "announce": ([[bytes(20), bytes(16), b"v", NOW]], [bytes(8), [True]]),
        "withdraw": ([[bytes(20), bytes(16)]], [bytes(8), 1]),
        "lookup": ([bytes(20)], [bytes(8), 3, [[bytes(20), [b"v", NOW]]]]),
        "watch": ([[bytes(20)], None, -1, 25], [bytes(8), 7, False, [bytes(20)]]),
    }
    assert set(bodies) == set(peers.COST)
    for op, (body, found) in bodies.items():
        asked = ask(CRYPTO, a, b.gateway, op, body, NOW, os.urandom(16))
        request = desk.open(asked.data, NOW)
        sealed = answer(CRYPTO, b, request, "", found, NOW)
        refusal = answer(CRYPTO, b, request, "rate-limited", None, NOW)
        for data, rule in ((asked.data, "request"), (sealed, "answer"), (refusal, "answer")):
            fits("sign1", data)
            message = cbor2.loads(data).value
            fits(f"{rule}-header", message[0])
            fits(rule, message[2])
        if op != "ping":
            fits(f"{op}-request", cbor.encode(body))
        fits(f"{op}-answer", cbor.encode(found))
    with pytest.raises(pycddl.ValidationError):
        fits("request", cbor.encode({1: bytes(8)}))


def test_vouchers_are_as_the_cddl_says(pair):
    a, _ = pair
    frame, _, found = stored(False)
    for judged, noise in ((None, 0), ((0, 2), 5), ((None, 2), 0)):
        facts = Facts(found.agent, wire.outcome_id(frame), NOW * 1000, 40, judged, noise)
        raw = make_voucher(CRYPTO, a.gateway, a.seed, found.payload, facts)
        fits("sign1", raw)
        fits("voucher-header", cbor2.loads(raw).value[0])


def test_the_spec_names_what_there_is():
    text = (Path(__file__).resolve().parents[2] / "SPEC.md").read_text()
    section = text[text.index("## 18. Between gateways") :]
    for op in peers.COST:
        assert f"| {op} |" in section
    assert PATH in section
    for number in (peers.REQUEST_MAX, peers.ANSWER_MAX):
        assert f"{number:,}" in section
    for word in (
        "unknown-peer", "revoked", "bad-signature", "wrong-audience", "too-far-ahead", "expired",
        "replayed", "not-allowed", "rate-limited",
    ):  # fmt: skip
        assert word in section
