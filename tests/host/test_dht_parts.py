"""The DHT route in parts, without a network: settings, values, the canary, words of its sidecar."""

import asyncio
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import dht_canary, dht_settings, dht_value, dht_wire
from gateway.dht_value import Envelope
from gateway.routes import VALUE_MAX, RouteError
from gateway.routes.dht import DhtRoute

SECRET, KEY, TOKEN = b"s" * 32, b"k" * 20, b"t" * 16

# -- settings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seeds",
    [["nonsense"], ["host:"], [":4222"], ["host:0"], ["host:65536"], ["a b:1"], [7], "host:1",
     ["-x:1"], ["host:4٤"], [f"h{n}:1" for n in range(65)]],
)  # fmt: skip
def test_a_bad_seed_list(tmp_path, seeds):
    with pytest.raises(RouteError, match="seeds"):
        DhtRoute(bytes(8), tmp_path, 1, seeds=seeds)


@pytest.mark.parametrize(
    ("name", "value"),
    [("network", 0), ("network", "1"), ("port", -1), ("port", True), ("host", "name"),
     ("expire_s", 1), ("canary_s", 0)],
)  # fmt: skip
def test_a_bad_setting(tmp_path, name, value):
    with pytest.raises(RouteError, match=name):
        DhtRoute(bytes(8), tmp_path, **{"network": 1, name: value})


def test_secrets_are_private_and_not_shown(tmp_path):
    who = dht_settings.identity(tmp_path / "new")
    assert dht_settings.identity(tmp_path / "new") == who
    assert (tmp_path / "new" / "node.json").stat().st_mode & 0o077 == 0
    assert who.secret.hex() not in repr(who)
    (tmp_path / "new" / "node.json").chmod(0o644)
    with pytest.raises(dht_settings.Refused, match="chmod 600"):
        dht_settings.identity(tmp_path / "new")
    for text in ("{}", "[]", "x", '{"id": "00", "secret": "00", "port": 1}'):
        (tmp_path / "new" / "node.json").write_text(text)
        (tmp_path / "new" / "node.json").chmod(0o600)
        with pytest.raises(dht_settings.Refused):
            dht_settings.identity(tmp_path / "new")


# -- values -------------------------------------------------------------------------------


def envelope(value, expires=2000, reveals=(), turn=0, secret=SECRET):
    number = dht_value.edition(value, expires, turn)
    shown = dht_value.commit(dht_value.word(secret, KEY, TOKEN, number))
    words = tuple(dht_value.word(secret, KEY, TOKEN, n) for n in reveals)
    return Envelope(expires, number, shown, words, value)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=VALUE_MAX),
       st.lists(st.binary(min_size=16, max_size=16), max_size=4))  # fmt: skip
def test_envelopes_read_back(expires, number, value, words):
    one = Envelope(expires, number, b"c" * 16, tuple(words), value)
    data = dht_value.pack(one)
    assert dht_value.parse(data) == one and len(data) <= dht_value.ENVELOPE_MAX
    for cut in range(28):
        assert dht_value.parse(data[:cut]) is None


@given(st.lists(st.binary(max_size=700), max_size=20))
def test_anything_may_lie_under_a_key(raw):
    good = dht_value.pack(envelope(b"good"))
    found = dht_value.read([*raw, good])
    assert b"good" in found.values


def test_only_the_owner_takes_back():
    one, two = envelope(b"one"), envelope(b"two")
    update = envelope(b"two", reveals=[one.edition])
    drop = envelope(b"", reveals=[one.edition, two.edition])
    pack = dht_value.pack
    assert dht_value.read([pack(one), pack(update)]).values == {b"two": 2000}
    assert dht_value.read([pack(one), pack(update), pack(drop)]).values == {}
    stranger = envelope(b"", reveals=[one.edition, two.edition], secret=b"x" * 32)
    copied = Envelope(9, 9, one.commit, (one.commit, two.commit), b"")
    found = dht_value.read([pack(one), pack(two), pack(stranger), pack(copied)])
    assert set(found.values) == {b"one", b"two"}
    again = envelope(b"one", turn=1)
    assert dht_value.read([pack(one), pack(drop), pack(again)]).values == {b"one": 2000}


def test_envelopes_are_as_specified():
    """Made here from the words of SPEC.md alone."""
    import hashlib
    import hmac

    def word(edition):
        text = b"qis1 dht word" + KEY + TOKEN + edition.to_bytes(4, "big")
        return hmac.new(SECRET, text, hashlib.sha256).digest()[:16]

    one = envelope(b"pointer", expires=0x01020304, reveals=[7])
    shown = hashlib.sha256(b"qis1 dht commit" + word(one.edition)).digest()[:16]
    raw = b"QD\x01\x01\x01\x02\x03\x04" + one.edition.to_bytes(4, "big") + shown + word(7)
    assert dht_value.pack(one) == raw + b"pointer"


def test_value_ids_are_stable_and_secret():
    data = dht_value.pack(envelope(b"one"))
    assert dht_value.value_id(SECRET, data) == dht_value.value_id(SECRET, data)
    assert dht_value.value_id(SECRET, data) != dht_value.value_id(b"x" * 32, data)


# -- canary and wire ------------------------------------------------------------------------


def test_canary_finds_a_lost_network():
    canary = dht_canary.Canary(SECRET, b"n" * 8, 1000)
    claim = dht_canary.pack(b"other" * 8, dht_canary.Claim(b"o" * 8, 5, 6))
    assert all(canary.other([b"junk"], 2) for _ in range(9)), "too few to tell"
    assert canary.other([claim, b"junk"], 50)
    assert [canary.other([], 50) for _ in range(5)] == [True] * 4 + [False]
    assert canary.lost == 1


def test_canary_finds_a_twin():
    me = dht_canary.Canary(SECRET, b"m" * 8, 1000)

    def said(started, beat, secret=SECRET):
        return dht_canary.pack(secret, dht_canary.Claim(b"t" * 8, started, beat))

    assert me.own([me.beat(1500), b"junk", said(1, 999)]), "what our last process left"
    assert me.own([said(1, 1500, b"x" * 32)]), "anybody can claim anything"
    assert me.twins == 0
    assert me.own([said(1200, 1500)]) and me.twins == 1, "it started later: it ends"
    assert not me.own([said(900, 1500)]), "it was first"


def test_wire_refuses_what_it_must():
    async def read(data):
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await dht_wire.read(reader)

    message = [1, "put", 7, b"k" * 20, 2**64 - 1, b"data"]
    packed = dht_wire.pack(message)
    assert asyncio.run(read(packed)) == message
    for cut in range(len(packed)):
        with pytest.raises(EOFError):
            asyncio.run(read(packed[:cut]))
    for bad in (b"\xff\xff\xff\xff", b"\0\0\0\1\xff", b"\0\0\0\1\x80", b"\0\0\0\2\x81\x60"):
        with pytest.raises(dht_wire.WireError):
            asyncio.run(read(bad))
    with pytest.raises(dht_wire.WireError):
        dht_wire.pack([1, bytes(dht_wire.FRAME_MAX)])


def test_a_seed_says_why_it_cannot_run(tmp_path):
    path = tmp_path / "seed.json"
    cases = [
        ("[]", "network is missing"),
        ('{"state": "s", "network": 1, "colour": 2}', "colour"),
        (json.dumps({"state": str(tmp_path), "network": 1, "seeds": ["x"]}), "host:port"),
    ]
    command = [sys.executable, "-m", "gateway.dht_node", "--config", str(path)]
    for text, why in cases:
        path.write_text(text)
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert done.returncode == 3 and why in done.stderr, (text, done)


def test_without_the_engine(monkeypatch, tmp_path):
    """The module loads; a node says what to install."""
    from gateway import dht_engine

    monkeypatch.setattr(dht_engine, "opendht", None)
    settings = dht_settings.settings(tmp_path, 1)

    async def run():
        dht_engine.Node(settings, bytes(20)).start(0)

    with pytest.raises(dht_settings.Refused, match="pip install") as caught:
        asyncio.run(run())
    assert caught.value.reason == "no-engine"
