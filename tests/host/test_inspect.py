"""`describe`: what `edge-agent frame` shows."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "core"))

import golden  # noqa: E402

from edge_agent import frame  # noqa: E402
from edge_agent.cpython.signer import HostCrypto  # noqa: E402
from edge_agent.domain import Domain  # noqa: E402
from edge_agent.tools.inspect import describe  # noqa: E402

CRYPTO = HostCrypto()
VECTORS = golden.load("frames")
FRAMES = {vector["name"]: bytes.fromhex(vector["frame"]) for vector in VECTORS["frames"]}
KEYS = frame.DeviceKeys(
    CRYPTO, bytes.fromhex(VECTORS["agent"]), bytes.fromhex(VECTORS["secret"]), VECTORS["generation"]
)
DOMAIN = Domain.load(bytes.fromhex(golden.load("domain")["file"]), CRYPTO)


@pytest.mark.parametrize("name", FRAMES)
def test_every_vector_with_and_without_keys(name):
    for keys in (None, KEYS):
        shown = describe(FRAMES[name], keys)
        assert shown["ok"] is True
        assert shown["verified"] is (keys is not None)
        assert shown["agent"] == VECTORS["agent"]
        assert shown["generation"] == VECTORS["generation"]
        assert (shown["message"] is None) == (keys is None and shown["form"] == "COSE_Encrypt0")
        text = json.dumps(shown)
        assert VECTORS["secret"] not in text
        for key in VECTORS["derived"].values():
            assert key not in text


def test_names_come_from_the_domain():
    shown = describe(FRAMES["acted on, with a parent"], KEYS, DOMAIN)
    outcome = shown["message"]["outcome"]
    assert shown["ok"]
    assert shown["kind"] == "outcome"
    assert shown["message"]["domain"] == "golden motion"
    assert outcome["label_name"] == "fall"
    assert outcome["tag_names"] == ["indoors"]
    assert outcome["action_name"] == "stop"
    assert outcome["result_name"] == "confirmed"
    assert len(outcome["vector"]) == 64
    assert min(outcome["vector"]) < 0
    assert shown["outcome_id"] == frame.outcome_id(FRAMES["acted on, with a parent"]).hex()


def test_what_does_not_fit_the_domain():
    shown = describe(FRAMES["worst case"], KEYS, DOMAIN)
    assert (shown["ok"], shown["reason"]) == (False, "unknown-label")
    assert shown["message"]["outcome"]["label_name"] is None
    other = Domain.load(bytes.fromhex(golden.load("domain")["wide_file"]), CRYPTO)
    assert describe(FRAMES["typical"], KEYS, other)["reason"] == "unknown-domain"
    record = frame.open_frame(FRAMES["typical"], frame.Keyring(KEYS), frame.UP).message
    forged = frame.seal(KEYS, record._replace(fingerprint=bytes(16)))
    assert describe(forged, KEYS, DOMAIN)["reason"] == "fingerprint"


def test_reasons():
    good = FRAMES["typical"]
    wrong = frame.DeviceKeys(CRYPTO, KEYS.agent, bytes(32), KEYS.generation)
    for data, keys, reason in (
        (b"", None, "not-cbor"),
        (b"\x80", None, "not-cose"),
        (bytes(513), None, "too-long"),
        (good[:-1], KEYS, "not-cbor"),
        (good, wrong, "bad-tag"),
        (good, frame.DeviceKeys(CRYPTO, bytes(8), bytes(32)), "unknown-agent"),
        (good, frame.DeviceKeys(CRYPTO, KEYS.agent, bytes(32), 9), "unknown-generation"),
    ):
        shown = describe(data, keys)
        assert (shown["ok"], shown["verified"], shown["reason"]) == (False, False, reason)
        json.dumps(shown)


@pytest.mark.parametrize("vector", golden.load("refused")["frames"], ids=lambda v: v["name"])
def test_nothing_refused_is_shown_as_good(vector):
    shown = describe(bytes.fromhex(vector["frame"]), KEYS)
    # A frame of the wrong direction is a good frame on the wrong topic: no topic here.
    if vector["reason"] != "bad-kind":
        assert not shown["ok"]
    json.dumps(shown)


def test_refusals_are_named():
    shown = describe(FRAMES["ack with refusals"], KEYS)
    assert shown["message"]["refused"] == [
        {"seq": 5, "reason": "fingerprint"},
        {"seq": 9, "reason": "conflict"},
    ]
