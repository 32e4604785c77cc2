"""SPEC.md binds, so its tables are compared with the code and the vectors."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "core"))

import golden  # noqa: E402

from edge_agent import config, frame, journal_state, keys, payload  # noqa: E402
from edge_agent import domain as domains  # noqa: E402

SPEC = (ROOT / "SPEC.md").read_text()
SECTIONS = dict(re.findall(r"^## (\d+)\. (?:.*)\n((?:(?!^## ).*\n?)*)", SPEC, re.M))


def number(text):
    return int(text.replace(",", ""))


def test_reasons():
    rows = re.findall(r"^\| (\d+) \| `([a-z0-9-]+)` \|", SECTIONS["9"], re.M)
    assert {name: int(value) for value, name in rows} == frame.REASONS


def test_kinds_and_key_infos():
    rows = re.findall(r"^\| (\d) \| ([a-z]+)[^|]* \| (?:up|down) \((\d)\) \|", SECTIONS["3"], re.M)
    assert {int(kind): name for kind, name, _ in rows} == frame.KIND_NAMES
    assert {int(kind): int(way) for kind, _, way in rows} == keys.DIRECTIONS
    infos = re.findall(r"^\| `(qis1 [a-z ]+)` \| (\d+) \|", SECTIONS["4"], re.M)
    derived = golden.load("frames")["derived"]
    told = {info: int(size) for info, size in infos if info != "qis1 mqtt"}
    assert told == {info: len(key) // 2 for info, key in derived.items()}
    assert ("qis1 mqtt", "16") in infos


def test_longest_frames():
    size = {vector["name"]: vector["bytes"] for vector in golden.load("frames")["frames"]}
    rows = re.findall(r"^\| ([a-z, ]+) \| (\d+) \| (\d+|-) \|", SECTIONS["7"], re.M)
    told = {name: (int(mac), 0 if enc == "-" else int(enc)) for name, mac, enc in rows}
    assert told == {
        "outcome": (size["worst case"], size["worst case encrypted"]),
        "outcome, small profile": (size["worst case small"], size["worst case small encrypted"]),
        "hello": (size["hello, worst case"], 0),
        "ack": (size["ack, worst case"], 0),
        "box": (size["box, worst case"], size["box, worst case encrypted"]),
        "cfg": (size["cfg, worst case"], size["cfg, worst case encrypted"]),
    }


def test_settings():
    rows = re.findall(r"^\| (\d+) \| `([a-z_]+)`[^|]*\| ([^|]+) \|", SECTIONS["6"], re.M)
    told = {}
    for setting, name, span in rows:
        low, high = (0, 2**32 - 1) if span.strip() == "u32" else map(number, span.split(" .. "))
        told[int(setting)] = (name, low, high)
    assert told == config.REMOTE


def test_drop_reasons():
    told = re.search(r"Reasons of label 25: ((?:.|\n)*?)\n\n", SECTIONS["6"])[1]
    names = {int(n): name.upper() for n, name in re.findall(r"(\d) (?:and )?([a-z]+)", told)}
    for n, name in names.items():
        assert getattr(journal_state, name) == n
    assert sorted(names) == list(range(journal_state.REFUSED + 1))


def test_every_label_is_in_the_spec_and_the_cddl():
    used = set()
    for vector in golden.load("frames")["frames"]:
        content = frame.cbor.decode(bytes.fromhex(vector["payload"]))
        used |= set(content)
    cddl = {
        int(label)
        for label in re.findall(
            r"^  (?:\? )?(\d+): ", (ROOT / "edge_agent" / "frame.cddl").read_text(), re.M
        )
    }
    told = {0}
    for row in re.findall(r"^\| ([\d, ]+) \|", SECTIONS["6"].partition("| setting |")[0], re.M):
        told |= {int(label) for label in row.split(",")}
    assert used == cddl == told


def test_limits():
    assert f"at most {frame.MAX_FRAME} bytes" in SECTIONS["3"]
    assert f"at most {payload.BODY_MAX} bytes" in SECTIONS["6"]
    assert f"{frame.PAD_MIN} to {frame.MAX_FRAME} bytes, or {frame.PAD_SMALL}" in SECTIONS["7"]
    assert f"At most {domains.FILE_MAX:,} bytes" in SECTIONS["11"]
    assert f"at most {domains.NAMES_MAX:,} texts of 1 to {domains.NAME_MAX} bytes" in SECTIONS["11"]
    assert f"1 .. {domains.MAX_WIDTH:,}" in SECTIONS["11"]
    assert payload.MS_MAX == 2**52
    assert payload.COUNTER_MAX == 2**62
