"""The configuration of one agent: a JSON object, checked field by field.

Every error names the field, shows the value (secrets excepted) and says what to
write. Unknown fields are errors: a misspelt limit must not be silently ignored.

    agent           16 hex digits, required: the agent's id
    key             64 hex digits, required: the device key. Secret
    generation      0..255, default 0: generation of the key
    root            text, default "qis/1": first levels of every topic
    domain          path of the domain file, required to run
    domain_id       16 hex digits, optional: refuse any other domain
    model           path of the .tflite file, required to run
    broker          {host, port 1883 (8883 with tls), username, password, keepalive_s 30,
                     connect_timeout_s 10, tls}
                    username defaults to the agent's id, password to one derived from the key
       tls          {ca, cert, key, fingerprint, server_name}: paths of PEM files;
                    fingerprint = SHA-256 of the broker's certificate, 64 hex digits:
                    exactly that certificate is trusted, and no date is needed to check it
    sensor          {kind, stall_s 60, ...}: other fields belong to the kind of sensor
    journal         {path, segment_bytes 32768, max_segments 64, reserve [4, 8, 0],
                     policy "drop-oldest"|"drop-new", sync "batch"|"every", batch 8,
                     batch_ms 5000}
    delivery        {window 8, custody 32, pace_per_s 20, ack_timeout_s 20, duty_s 0,
                     duty_cap_s 60, late_s 300}
                    duty_s 0 = always connected; pace_per_s limits the backlog only
    priorities      {label: 0 urgent | 1 normal | 2 bulk}, "*" for all others
    coalesce        [label]: of these only the latest not yet synced is kept
    ttl_s           seconds after which a record is worthless, 0 = never
    encrypt, small  booleans, default false
    pad             0 or the constant size of outcome frames: 300..512, or 222 with small
    unsure_below    0..255: lower confidence adds the tag "unsure"

A file that holds a key must be readable by its owner only (mode 0600).
"""

import json
import os
from binascii import unhexlify

from edge_agent.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Settings that a cfg message may change: number -> (attribute, lowest, highest).
# SPEC.md lists them; numbers are never used again for something else.
REMOTE = {
    1: ("duty_s", 0, 86400),
    2: ("duty_cap_s", 1, 3600),
    3: ("pace_per_s", 1, 10000),
    4: ("window", 1, 64),
    5: ("ack_timeout_s", 1, 3600),
    6: ("batch", 1, 64),
    7: ("batch_ms", 0, 3600000),
    8: ("unsure_below", 0, 255),
    9: ("ttl_s", 0, 0xFFFFFFFF),
    10: ("stall_s", 0, 86400),
}

_TOP = [
    "agent",
    "key",
    "generation",
    "root",
    "domain",
    "domain_id",
    "model",
    "broker",
    "sensor",
    "journal",
    "delivery",
    "priorities",
    "coalesce",
    "ttl_s",
    "encrypt",
    "small",
    "pad",
    "unsure_below",
]


class Broker:
    """Where the broker is and how to prove who we are. `repr` hides the password."""

    def __init__(self, fields: "dict[str, Any]") -> None:
        _known(
            fields,
            ["host", "port", "username", "password", "keepalive_s", "connect_timeout_s", "tls"],
            "broker",
        )
        tls = fields.get("tls")
        self.host = _text(fields, "host", "broker", "localhost")
        self.port = _int(fields, "port", "broker", 1, 65535, 1883 if tls is None else 8883)
        self.username = _text(fields, "username", "broker", "")
        self.password = _text(fields, "password", "broker", "", secret=True)
        self.keepalive_s = _int(fields, "keepalive_s", "broker", 1, 65535, 30)
        self.connect_timeout_s = _int(fields, "connect_timeout_s", "broker", 1, 600, 10)
        self.tls = None if tls is None else Tls(tls)

    def __repr__(self) -> str:
        return "Broker(%s:%d, tls=%s)" % (self.host, self.port, self.tls is not None)


class Tls:
    """How to trust the broker. Empty texts mean: not given."""

    def __init__(self, fields: "dict[str, Any]") -> None:
        _known(fields, ["ca", "cert", "key", "fingerprint", "server_name"], "broker.tls")
        self.ca = _text(fields, "ca", "broker.tls", "")
        self.cert = _text(fields, "cert", "broker.tls", "")
        self.key = _text(fields, "key", "broker.tls", "")
        self.fingerprint = _hex(fields, "fingerprint", "broker.tls", 32, b"")
        self.server_name = _text(fields, "server_name", "broker.tls", "")
        if not self.ca and not self.fingerprint:
            raise ConfigError(
                "neither ca nor fingerprint is given",
                "broker.tls",
                "Name the PEM file of the certificate authority, or the SHA-256 of the "
                "broker's certificate",
            )
        if bool(self.cert) != bool(self.key):
            raise ConfigError("cert and key go together", "broker.tls", "Give both or neither")


class Config:
    """Checked settings; the attributes are named in the module's docstring, flat."""

    def __init__(self, fields: "dict[str, Any]") -> None:
        _known(fields, _TOP, "")
        self.agent = _hex(fields, "agent", "", 8)
        self.key = _hex(fields, "key", "", 32, secret=True)
        self.generation = _int(fields, "generation", "", 0, 255, 0)
        self.root = _text(fields, "root", "", "qis/1")
        self._check_root()
        self.domain = _text(fields, "domain", "", "")
        self.domain_id = _hex(fields, "domain_id", "", 8, b"")
        self.model = _text(fields, "model", "", "")
        self.broker = Broker(_section(fields, "broker"))
        self.sensor = _section(fields, "sensor")
        self.stall_s = _int(self.sensor, "stall_s", "sensor", 0, 86400, 60)
        self._read_journal(_section(fields, "journal"))
        self._read_delivery(_section(fields, "delivery"))
        self._read_records(fields)

    def _read_journal(self, fields: "dict[str, Any]") -> None:
        where = "journal"
        _known(
            fields,
            [
                "path",
                "segment_bytes",
                "max_segments",
                "reserve",
                "policy",
                "sync",
                "batch",
                "batch_ms",
            ],
            where,
        )
        self.journal_path = _text(fields, "path", where, "journal")
        self.segment_bytes = _int(fields, "segment_bytes", where, 1024, 1 << 20, 32768)
        self.max_segments = _int(fields, "max_segments", where, 8, 240, 64)
        reserve = fields.get("reserve", [4, 8, 0])
        if (
            not isinstance(reserve, (list, tuple))
            or len(reserve) != 3
            or any(not _is_int(r) or r < 0 for r in reserve)
        ):
            raise _bad(
                "journal.reserve", reserve, "three numbers of segments, [urgent, normal, bulk]"
            )
        # One segment a priority, two for the quarantine, two for damaged ones kept to look at.
        if sum(reserve) + 7 > self.max_segments:
            raise _bad("journal.reserve", reserve, "at most max_segments - 7 in all")
        self.reserve = tuple(reserve)
        self.policy = _choice(fields, "policy", where, ("drop-oldest", "drop-new"))
        self.sync = _choice(fields, "sync", where, ("batch", "every"))
        self.batch = _int(fields, "batch", where, 1, 64, 8)
        self.batch_ms = _int(fields, "batch_ms", where, 0, 3600000, 5000)

    def _read_delivery(self, fields: "dict[str, Any]") -> None:
        where = "delivery"
        _known(
            fields,
            ["window", "custody", "pace_per_s", "ack_timeout_s", "duty_s", "duty_cap_s", "late_s"],
            where,
        )
        self.window = _int(fields, "window", where, 1, 64, 8)
        self.custody = _int(fields, "custody", where, 1, 1024, 32)
        self.pace_per_s = _int(fields, "pace_per_s", where, 1, 10000, 20)
        self.ack_timeout_s = _int(fields, "ack_timeout_s", where, 1, 3600, 20)
        self.duty_s = _int(fields, "duty_s", where, 0, 86400, 0)
        self.duty_cap_s = _int(fields, "duty_cap_s", where, 1, 3600, 60)
        self.late_s = _int(fields, "late_s", where, 1, 86400, 300)

    def _read_records(self, fields: "dict[str, Any]") -> None:
        priorities = _section(fields, "priorities")
        for label in sorted(priorities):
            if not _is_int(priorities[label]) or not 0 <= priorities[label] <= 2:
                raise _bad(
                    "priorities." + str(label), priorities[label], "0 urgent, 1 normal or 2 bulk"
                )
        self.priorities = priorities
        coalesce = fields.get("coalesce", [])
        if not isinstance(coalesce, list) or any(not isinstance(x, str) for x in coalesce):
            raise _bad("coalesce", coalesce, "a list of labels")
        self.coalesce = coalesce
        self.ttl_s = _int(fields, "ttl_s", "", 0, 0xFFFFFFFF, 0)
        self.encrypt = _bool(fields, "encrypt")
        self.small = _bool(fields, "small")
        self.pad = _int(fields, "pad", "", 0, 512, 0)
        if 0 < self.pad < 300 and not (self.small and self.pad == 222):
            raise _bad("pad", self.pad, "0, 300..512, or 222 together with small")
        self.unsure_below = _int(fields, "unsure_below", "", 0, 255, 0)

    def _check_root(self) -> None:
        # A wildcard or an empty level would subscribe to, or publish on, other topics.
        levels = self.root.split("/")
        if "" in levels or any(c in self.root for c in "+#\x00") or len(self.root) > 64:
            raise _bad("root", self.root, "topic levels like qis/1, without + and #")

    def apply(self, settings: "dict[int, int]") -> "list[str]":
        """Take over the settings of a cfg message; the names of what changed.

        Nothing is changed unless `check` passes. Numbers this version does not know are
        skipped.
        """
        self.check(settings)
        changed = []
        for number in sorted(settings):
            if number in REMOTE:
                name = REMOTE[number][0]
                if getattr(self, name) != settings[number]:
                    setattr(self, name, settings[number])
                    changed.append(name)
        return changed

    @staticmethod
    def check(settings: "dict[int, int]") -> None:
        """ConfigError for the first value out of range."""
        for number in sorted(settings):
            if number in REMOTE:
                name, low, high = REMOTE[number]
                value = settings[number]
                if not _is_int(value) or not low <= value <= high:
                    raise _bad("cfg setting %d (%s)" % (number, name), value, _span(low, high))

    def topic(self, name: str) -> str:
        """The agent's topic `name`: "up", "state", "ack", "box", "cfg"."""
        return self.root + "/" + _to_hex(self.agent) + "/" + name

    def __repr__(self) -> str:
        return "Config(agent=%s, broker=%r, key=hidden)" % (_to_hex(self.agent), self.broker)

    @staticmethod
    def from_json(source: "str | bytes | dict[str, Any]") -> "Config":
        """Check a JSON text or an object already parsed. ConfigError says what is wrong."""
        if isinstance(source, (str, bytes)):
            try:
                source = json.loads(source)
            except ValueError as error:
                raise ConfigError(
                    "not JSON (%s)" % error, "configuration", "Check commas and quotes"
                )
        if not isinstance(source, dict):
            raise ConfigError(
                "not a JSON object", "configuration", "It starts with { and ends with }"
            )
        return Config(source)

    @staticmethod
    def load(path: str) -> "Config":
        """Read a file. ConfigError when it is missing, readable by others, or wrong."""
        try:
            mode = os.stat(path)[0]
        except OSError as error:
            raise ConfigError(
                "cannot be read (%s)" % error, path, "`edge-gateway enrol` writes one"
            )
        # Files of boards have no owner and show no permission bits.
        if mode & 0o077:
            raise ConfigError(
                "holds a key and can be read by others (mode %03o)" % (mode & 0o777),
                path,
                "chmod 600 " + path,
            )
        with open(path) as file:
            text = file.read()
        try:
            return Config.from_json(text)
        except ConfigError as error:
            raise ConfigError(error.what, path + ": " + error.where, error.fix)


def _to_hex(data: bytes) -> str:
    return "".join("%02x" % b for b in data)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _bad(field: str, value: object, expected: str) -> ConfigError:
    text = repr(value)
    if len(text) > 60:
        text = text[:57] + "..."
    return ConfigError(text + " is not allowed", field, "Write " + expected)


def _span(low: int, high: int) -> str:
    return "a whole number %d..%d" % (low, high)


def _known(fields: "dict[str, Any]", names: "list[str]", where: str) -> None:
    if not isinstance(fields, dict):
        raise _bad(where or "configuration", fields, "a JSON object")
    for name in sorted(fields):
        if name not in names:
            raise ConfigError(
                "unknown field",
                (where + "." if where else "") + str(name),
                "Known here: " + " ".join(sorted(names)),
            )


def _section(fields: "dict[str, Any]", name: str) -> "dict[str, Any]":
    value = fields.get(name, {})
    if not isinstance(value, dict):
        raise _bad(name, value, "a JSON object")
    return value


def _join(where: str, name: str) -> str:
    return where + "." + name if where else name


def _int(fields: "dict[str, Any]", name: str, where: str, low: int, high: int, default: int) -> int:
    value: int = fields.get(name, default)
    if not _is_int(value) or not low <= value <= high:
        raise _bad(_join(where, name), value, _span(low, high))
    return value


def _text(
    fields: "dict[str, Any]", name: str, where: str, default: str, secret: bool = False
) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str):
        if secret:
            raise ConfigError("not a text (not shown)", _join(where, name), "Write a text")
        raise _bad(_join(where, name), value, "a text")
    return value


def _choice(fields: "dict[str, Any]", name: str, where: str, allowed: "tuple[str, ...]") -> str:
    value: str = fields.get(name, allowed[0])
    if value not in allowed:
        raise _bad(_join(where, name), value, " or ".join('"' + a + '"' for a in allowed))
    return value


def _bool(fields: "dict[str, Any]", name: str) -> bool:
    value = fields.get(name, False)
    if value is not True and value is not False:
        raise _bad(name, value, "true or false")
    return value


def _hex(
    fields: "dict[str, Any]",
    name: str,
    where: str,
    length: int,
    default: "bytes | None" = None,
    secret: bool = False,
) -> bytes:
    field = _join(where, name)
    value = fields.get(name)
    if value is None or value == "":
        if default is None:
            raise ConfigError("missing", field, "Write %d hex digits" % (2 * length))
        return default
    try:
        if not isinstance(value, str) or len(value) != 2 * length:
            raise ValueError
        return unhexlify(value)
    except ValueError:
        shown = "the value (not shown)" if secret else repr(value)[:60]
        raise ConfigError(shown + " is not allowed", field, "Write %d hex digits" % (2 * length))
