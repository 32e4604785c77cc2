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
    board           {...}: radio, sleep, watchdog and buses; fields belong to the board's adapter
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
    peers           {neighbours 16, rows 16, depth 3, ttl_h 720}; without it no mail is taken.
                    neighbours: outcomes of others kept, 0..23.  rows: labels that a head may
                    have, 1..64.  depth: neighbours with more synthesis behind them do not
                    count.  ttl_h: hours until a neighbour has expired

A file that holds a key must be readable by its owner only (mode 0600).
"""

import json
import os

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


class Broker:
    """Where the broker is and how to prove who we are. `repr` hides the password.

    Attributes: host, port, username, password, keepalive_s, connect_timeout_s, tls (None
    or a Tls).
    """

    host: str
    port: int
    username: str
    password: str
    keepalive_s: int
    connect_timeout_s: int
    tls: "Tls | None"

    def __init__(self, fields: "dict[str, Any]") -> None:
        from edge_agent.config_fields import fill_broker

        fill_broker(self, Tls, fields)

    def __repr__(self) -> str:
        return "Broker(%s:%d, tls=%s)" % (self.host, self.port, self.tls is not None)


class Tls:
    """How to trust the broker. Empty texts mean: not given.

    Attributes: ca, cert, key, fingerprint, server_name.
    """

    ca: str
    cert: str
    key: str
    fingerprint: bytes
    server_name: str

    def __init__(self, fields: "dict[str, Any]") -> None:
        from edge_agent.config_fields import fill_tls

        fill_tls(self, fields)


class Config:
    """Checked settings; the attributes are named in the module's docstring, flat."""

    agent: bytes
    key: bytes
    domain_id: bytes
    root: str
    domain: str
    model: str
    journal_path: str
    policy: str
    sync: str
    generation: int
    stall_s: int
    segment_bytes: int
    max_segments: int
    batch: int
    batch_ms: int
    window: int
    custody: int
    pace_per_s: int
    ack_timeout_s: int
    duty_s: int
    duty_cap_s: int
    late_s: int
    ttl_s: int
    pad: int
    unsure_below: int
    encrypt: bool
    small: bool
    broker: Broker
    sensor: "dict[str, Any]"
    board: "dict[str, Any]"
    reserve: "tuple[int, ...]"
    priorities: "dict[str, int]"
    coalesce: "list[str]"
    peers: "dict[str, int] | None"

    def __init__(self, fields: "dict[str, Any]") -> None:
        from edge_agent.config_fields import fill

        fill(self, Broker, fields)

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
                if not is_int(value) or not low <= value <= high:
                    raise bad("cfg setting %d (%s)" % (number, name), value, span(low, high))

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


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def bad(field: str, value: object, expected: str) -> ConfigError:
    text = repr(value)
    if len(text) > 60:
        text = text[:57] + "..."
    return ConfigError(text + " is not allowed", field, "Write " + expected)


def span(low: int, high: int) -> str:
    return "a whole number %d..%d" % (low, high)
