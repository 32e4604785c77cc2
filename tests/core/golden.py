"""Reads and writes tests/vectors/*.json: byte strings as "hex:..", maps as {"map": pairs}."""

import json

from edge_agent import frame
from edge_agent.outcome import Outcome

HERE = __file__.rpartition("/")[0] or "."

OUTCOME_FIELDS = [
    "vector",
    "label",
    "confidence",
    "tags",
    "action",
    "result",
    "parents",
    "depth",
    "head",
    "about",
    "model",
    "alone",
]
FIELDS = {
    "OutcomeRecord": (
        ["journal", "seq", "boot", "uptime_ms", "utc_s", "domain_id", "outcome", "fingerprint"],
        frame.OutcomeRecord,
    ),
    "Hello": (
        [
            "journal",
            "next_seq",
            "boot",
            "uptime_ms",
            "utc_s",
            "floor",
            "nonce",
            "counter",
            "oldest_generation",
            "pending",
            "dropped",
            "gone",
            "model",
            "version",
            "cfg_version",
            "head",
            "taken",
        ],
        frame.Hello,
    ),
    "Ack": (["journal", "ranges", "refused", "nonce", "utc_ms", "counter"], frame.Ack),
    "Box": (["counter", "type", "body", "number"], frame.Box),
    "Cfg": (["counter", "version", "settings"], frame.Cfg),
}


def load(name):
    with open(HERE + "/../vectors/" + name + ".json") as file:
        return json.load(file)


def unhex(text):
    return bytes(int(text[i : i + 2], 16) for i in range(0, len(text), 2))


def to_json(value):
    if isinstance(value, Outcome):
        return {
            "type": "Outcome",
            "fields": {name: to_json(getattr(value, name)) for name in OUTCOME_FIELDS},
        }
    for name, (fields, made) in FIELDS.items():
        if isinstance(value, made):
            return {"type": name, "fields": {f: to_json(getattr(value, f)) for f in fields}}
    if isinstance(value, bytes):
        return "hex:" + value.hex()
    if isinstance(value, dict):
        return {"map": [[to_json(k), to_json(value[k])] for k in sorted(value)]}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def from_json(value):
    if isinstance(value, str):
        return unhex(value[4:]) if value.startswith("hex:") else value
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if isinstance(value, dict):
        if "map" in value:
            return {from_json(pair[0]): from_json(pair[1]) for pair in value["map"]}
        fields = value["fields"]
        if value["type"] == "Outcome":
            return Outcome(*[from_json(fields[name]) for name in OUTCOME_FIELDS])
        names, made = FIELDS[value["type"]]
        return made(*[from_json(fields[name]) for name in names])
    return value
