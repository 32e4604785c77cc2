"""Who belongs to the network: files, cards, revocation, and TLS with the certificates."""

import json
import os
import ssl
import stat
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edge_agent import cbor, cose
from edge_agent.cpython.signer import HostCrypto
from edge_agent.errors import ConfigError, StoreError
from gateway import network
from gateway.cards import CARD_MAX, CardError, read_card, split_endpoint
from gateway.cli_network import add_network_commands
from gateway.config import new_config
from gateway.files import write_private
from gateway.network import Network

CRYPTO = HostCrypto()


def folder(path, name):
    made = path / name
    made.mkdir(mode=0o700)
    new_config(made, "127.0.0.1", 1883, "qis/1", None)
    return made


@pytest.fixture
def pair(tmp_path):
    """Two members of a sealed network that know each other."""
    a = network.create(folder(tmp_path, "a"), "plant", os.urandom(32), endpoint="10.0.0.1:8443")
    a.share(tmp_path / "join")
    b = network.join(folder(tmp_path, "b"), tmp_path / "join", "10.0.0.2:8443")
    a.add(b.card("b", "10.0.0.2:8443"))
    b.add(a.card("a", "10.0.0.1:8443"))
    return a, b


def command(capsys, *arguments):
    """(exit code, standard output) of `edge-gateway network ...`, as its parser runs it."""
    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser()
    parser.add_argument("-C", "--dir", type=Path)
    add_network_commands(parser.add_subparsers())
    options = parser.parse_args([str(a) for a in arguments])
    code = options.do(options)
    return code, capsys.readouterr().out


def test_members_agree_and_know_each_other(pair):
    a, b = pair
    assert (a.name, a.network, a.key, a.sketch) == (b.name, b.network, b.key, b.sketch)
    assert len(a.key) == 32 and a.sketch == "int4x64"
    assert a.peer(b.gateway).public == b.public and a.public_key(b.gateway) == b.public
    assert a.peer(b.gateway).endpoint == "10.0.0.2:8443"
    assert a.peer(a.gateway) is None and a.public_key(a.gateway) == a.public
    assert a.members() == b.members() == 2
    assert a.public_key(bytes(8)) is None and not a.revoked(bytes(8))


def test_what_is_written_is_private_and_survives(pair):
    a, _ = pair
    for name in ("gateway.key", "network.json"):
        assert stat.S_IMODE((a.folder / name).stat().st_mode) == 0o600
    again = Network.load(a.folder.parent)
    assert (again.seed, again.key, again.peers()) == (a.seed, a.key, a.peers())
    for secret in (a.key.hex(), a.seed.hex()):
        assert secret not in repr(a)
    (a.folder / "network.json").chmod(0o644)
    with pytest.raises(ConfigError, match="others can read"):
        Network.load(a.folder.parent)


def test_the_shared_file_is_private_and_no_file_is_overwritten(pair, tmp_path):
    a, b = pair
    assert stat.S_IMODE((tmp_path / "join").stat().st_mode) == 0o600
    with pytest.raises(StoreError):
        a.share(tmp_path / "join")
    with pytest.raises(StoreError, match="is there already"):
        network.create(b.folder.parent, "other")


def test_equal_names_and_keys_meet_and_others_do_not(tmp_path):
    made = [
        network.create(folder(tmp_path, str(i)), name, key).network
        for i, (name, key) in enumerate(
            [("x", b""), ("x", b""), ("y", b""), ("x", bytes(range(32)))]
        )
    ]
    assert made[0] == made[1] and len(set(made)) == 3


def test_an_open_network_defaults_to_the_sketch_that_tells_least(tmp_path):
    assert network.create(folder(tmp_path, "a"), "x").sketch == "sign256"
    assert network.create(folder(tmp_path, "b"), "x", sketch="int8").sketch == "int8"


def test_revoked_is_known_as_such_and_never_comes_back(pair):
    a, b = pair
    watching = Network.load(a.folder.parent)
    assert not watching.refresh()
    a.revoke(a.find("b"), 5)
    assert watching.refresh() and not watching.refresh()
    for view in (a, watching):
        assert view.revoked(b.gateway) and view.public_key(b.gateway) is None
        assert view.peer(b.gateway).revoked_ms == 5 and view.members() == 1
    with pytest.raises(StoreError, match="revoked"):
        a.add(b.card("b"))
    a.revoke(a.find("b"), 9)
    assert a.peer(b.gateway).revoked_ms == 5


def test_a_new_card_moves_a_peer_and_another_key_does_not(pair, tmp_path):
    a, b = pair
    a.set_rules(a.find("b"), {"fetch": False})
    a.add(b.card("whatever", "10.9.9.9:1"))
    assert a.find("b").endpoint == "10.9.9.9:1" and a.find("b").rules == {"fetch": False}
    thief = network.create(folder(tmp_path, "thief"), "plant", a.key)
    thief.gateway = b.gateway
    with pytest.raises(StoreError, match="another key"):
        a.add(thief.card("b"))
    with pytest.raises(CardError, match="own-card"):
        a.add(a.card("a"))
    other = network.create(folder(tmp_path, "other"), "plant", a.key)
    with pytest.raises(StoreError, match="name is taken"):
        a.add(other.card("b"))
    assert a.add(other.card("b"), "c").name == "c" and a.find(other.gateway.hex()[:6]).name == "c"


def test_bad_cards(pair, tmp_path):
    a, b = pair
    card = b.card("b", "10.0.0.2:8443")
    assert read_card(card).public == b.public and len(card) < CARD_MAX
    for cut in range(len(card)):
        with pytest.raises(CardError):
            read_card(card[:cut])
    for at in range(len(card)):
        wrong = bytearray(card)
        wrong[at] ^= 1 << at % 8
        with pytest.raises(CardError):
            read_card(bytes(wrong))
    with pytest.raises(CardError, match="too-long"):
        read_card(card + bytes(CARD_MAX))
    body = cbor.decode(cose.parse(card).payload)
    ours = cbor.decode(cose.parse(a.card("a")).payload)
    for change, reason in (
        ({4: ours[4]}, "bad-certificate"),
        ({4: b"x"}, "bad-certificate"),
        ({4: None}, "bad-field"),
        ({1: b"short"}, "bad-field"),
        ({1: bytes(8)}, "bad-field"),
        ({2: "a/b"}, "bad-field"),
        ({3: a.public}, "bad-signature"),
        ({3: 7}, "bad-field"),
        ({5: "nowhere"}, "bad-field"),
        ({5: 7}, "bad-field"),
        ({5: ["a:1"]}, "bad-field"),
        ({5: {}}, "bad-field"),
        ({4: [1]}, "bad-field"),
        ({1: {}}, "bad-field"),
    ):
        made = b.sign(cbor.encode({**body, **change}), b"qis card", 65012)
        with pytest.raises(CardError) as caught:
            read_card(made)
        assert caught.value.reason == reason, change
    with pytest.raises(CardError, match="bad-field"):
        read_card(b.sign(cbor.encode(body), b"qis card", 65010))
    with pytest.raises(CardError, match="bad-signature"):
        read_card(b.sign(cbor.encode(body), b"other", 65012))


def test_a_new_key_shuts_the_revoked_out(pair, tmp_path, capsys):
    a, b = pair
    homes = [one.folder.parent for one in pair]
    c = network.create(folder(tmp_path, "c"), "plant", a.key)
    old = a.key
    command(capsys, "-C", homes[0], "network", "rekey", "--out", tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    assert a.refresh() and a.key != old and len(a.key) == 32 and a.members() == 2
    _, text = command(capsys, "-C", homes[1], "network", "rekey", "--join", tmp_path / "new")
    assert b.refresh() and b.key == a.key and b.network == a.network
    assert a.key.hex() not in text and c.key == old
    with pytest.raises(StoreError):
        command(capsys, "-C", homes[0], "network", "rekey", "--out", tmp_path / "new")
    assert not a.refresh() and a.key == b.key
    other = network.create(folder(tmp_path, "d"), "elsewhere", a.key)
    other.share(tmp_path / "theirs")
    with pytest.raises(ConfigError, match="no key of network plant"):
        command(capsys, "-C", homes[1], "network", "rekey", "--join", tmp_path / "theirs")
    with pytest.raises(ConfigError):
        a.rekey(b"")


def test_every_field_of_the_file_is_checked_by_name(pair):
    a, _ = pair
    path = a.folder / "network.json"
    good = json.loads(path.read_text())
    peer = good["peers"][0]
    for name, value in (
        ("name", "no spaces"), ("name", 4), ("network", -1), ("network", True), ("key", "00"),
        ("key", "G" * 64), ("sketch", "float"), ("seeds", ["x"]), ("seeds", 5), ("seeds", [5]),
        ("seeds", [["a:1"]]), ("seeds", [{}]), ("endpoint", 0),
        ("endpoint", "1.2.3.4:99999"), ("endpoint", ["a:1"]), ("peers", {}),
        ("extra", 1), ("peers", [{}]),
        ("peers", [peer, peer]), ("peers", [{**peer, "public": "00" * 32}]),
        ("peers", [{**peer, "revoked_ms": "x"}]), ("peers", [{**peer, "colour": 1}]),
        ("peers", ["x"]), ("peers", [{**peer, "certificate": a.certificate}]),
    ):  # fmt: skip
        write_private(path, json.dumps({**good, name: value}))
        with pytest.raises(ConfigError, match=name):
            Network.load(a.folder.parent)
        with pytest.raises(ConfigError):
            a.refresh()
        # What was read before stays in force.
        assert len(a.peers()) == 1 and len(a.key) == 32
    for name in good:
        write_private(path, json.dumps({k: v for k, v in good.items() if k != name}))
        with pytest.raises(ConfigError, match=name):
            Network.load(a.folder.parent)
    write_private(path, "{")
    with pytest.raises(ConfigError, match="not JSON"):
        Network.load(a.folder.parent)
    write_private(path, json.dumps(good))
    assert a.refresh()


def test_a_lost_or_foreign_key_is_told(pair):
    a, b = pair
    (a.folder / "gateway.crt").write_bytes((b.folder / "gateway.crt").read_bytes())
    with pytest.raises(ConfigError, match="another key"):
        Network.load(a.folder.parent)
    write_private(a.folder / "gateway.key", "x")
    with pytest.raises(ConfigError, match="no Ed25519 key"):
        Network.load(a.folder.parent)
    (a.folder / "network.json").unlink()
    with pytest.raises(ConfigError, match="network init"):
        Network.load(a.folder.parent)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a:1", ("a", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("gw.plant-3.example:8443", ("gw.plant-3.example", 8443)),
        ("::1:80", None), ("a", None), ("a:", None), (":1", None), ("a:0", None),
        ("a:65536", None), ("a b:1", None), ("[a:1", None), ("[a]:1", None), ("a:-1", None),
        ("x" * 63 + ":1", None), ("a/b:1", None), ("a:\uff11", None),
    ],
)  # fmt: skip
def test_endpoints(text, found):
    if found is None:
        with pytest.raises(ValueError):
            split_endpoint(text)
    else:
        assert split_endpoint(text) == found
        assert network.join_endpoint(*found) == text


def test_two_writers_lose_nothing(pair, tmp_path):
    a, _ = pair
    cards = [
        network.create(folder(tmp_path, f"n{i}"), "plant", a.key).card(f"n{i}") for i in range(8)
    ]
    threads = [
        threading.Thread(target=lambda c=c: Network.load(a.folder.parent).add(c)) for c in cards
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    a.refresh()
    assert len(a.peers()) == 9


def test_signatures_verify_with_code_that_is_not_ours(pair):
    import cbor2

    a, _ = pair
    certificate = x509.load_pem_x509_certificate(a.certificate.encode())
    assert certificate.public_key().public_bytes_raw() == a.public
    message = cbor2.loads(a.sign(b"payload", b"aad", 65011))
    assert cbor2.loads(message.value[0]) == {1: -8, 4: a.gateway, 16: 65011}
    signed = cbor2.dumps(["Signature1", message.value[0], b"aad", b"payload"])
    Ed25519PublicKey.from_public_bytes(a.public).verify(message.value[3], signed)
    assert Ed25519PrivateKey.from_private_bytes(a.seed).public_key() == certificate.public_key()


def handshake(server, client_trusts, certificate_of=None):
    """Connect with the settings DESIGN.md names; returns what the client saw, or raises."""
    listen = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listen.minimum_version = ssl.TLSVersion.TLSv1_3
    listen.load_cert_chain(server.folder / "gateway.crt", server.folder / "gateway.key")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_REQUIRED
    client.minimum_version = ssl.TLSVersion.TLSv1_3
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_verify_locations(cadata=client_trusts)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server)
    there = listen.wrap_bio(to_server, to_client, server_side=True)
    done = set()
    for _ in range(10):
        for side in (here, there):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
    assert len(done) == 2
    return here.version(), here.getpeercert(True)


def test_tls_takes_exactly_the_pinned_certificate(pair, tmp_path):
    a, b = pair
    version, seen = handshake(b, a.find("b").certificate)
    assert version == "TLSv1.3"
    assert x509.load_der_x509_certificate(seen).public_key().public_bytes_raw() == b.public
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(b, a.certificate)
    # A member cannot use its key to make certificates for others.
    other = network.create(folder(tmp_path, "c"), "plant", a.key)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(other, a.find("b").certificate)


def test_commands(tmp_path, capsys):
    homes = [folder(tmp_path, name) for name in "ab"]
    code, text = command(
        capsys, "-C", homes[0], "network", "init", "plant", "--endpoint", "127.0.0.1:8443",
        "--seed", "10.0.0.1:4222", "--json",
    )  # fmt: skip
    assert code == 0 and json.loads(text)["sealed"]
    join, said = tmp_path / "join", [text]
    said.append(command(capsys, "-C", homes[0], "network", "share", "--out", join)[1])
    said.append(command(capsys, "-C", homes[1], "network", "init", "--join", join)[1])
    for i, name in enumerate("ab"):
        card = tmp_path / f"{name}.card"
        said.append(
            command(capsys, "-C", homes[i], "network", "card", "--out", card, "--name", name)[1]
        )
        said.append(command(capsys, "-C", homes[1 - i], "network", "add", card)[1])
    here = Network.load(homes[0])
    code, text = command(capsys, "-C", homes[1], "network", "show", "--json")
    found = json.loads(text)
    assert found["peers"][0]["gateway"] == here.gateway.hex()
    assert found["peers"][0]["endpoint"] == "127.0.0.1:8443"
    assert found["seeds"] == ["10.0.0.1:4222"] and found["network"] == here.network
    said += [text, command(capsys, "-C", homes[0], "network", "show")[1]]
    # Both owners can compare what was read out to them.
    assert found["peers"][0]["fingerprint"] in said[-1]
    rules = ("-C", homes[1], "network", "rules", "a")
    assert json.loads(command(capsys, *rules, "--json")[1])["group"] == 1
    said.append(command(capsys, *rules, "group=3", "noise=4", "ops=fetch,ping")[1])
    assert Network.load(homes[1]).find("a").rules == {
        "group": 3, "noise": 4, "ops": ["fetch", "ping"],
    }  # fmt: skip
    command(capsys, *rules, "noise=", "ops=")
    assert json.loads(command(capsys, *rules, "--json")[1])["noise"] == 0
    assert Network.load(homes[1]).find("a").rules == {"group": 3}
    for wrong in ("group=0", "group", "colour=1", "ops=steal", "domains=xy", "noise=-1"):
        with pytest.raises(ConfigError):
            command(capsys, *rules, wrong)
    assert Network.load(homes[1]).find("a").rules == {"group": 3}
    said.append(command(capsys, "-C", homes[1], "network", "revoke", "a")[1])
    assert Network.load(homes[1]).revoked(here.gateway)
    for secret in (here.key.hex(), here.seed.hex()):
        assert not any(secret in text for text in said)
    with pytest.raises(ConfigError, match="NAME"):
        command(capsys, "-C", folder(tmp_path, "c"), "network", "init")
    with pytest.raises(ConfigError, match="no such"):
        command(capsys, "-C", homes[1], "network", "revoke", "nobody")
