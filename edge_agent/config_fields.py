"""Reading a configuration, field by field; see config.py for what the fields mean.

Only needed when a device starts: a board lets go of this module then.
"""

from binascii import unhexlify

from edge_agent.config import bad, is_int, span
from edge_agent.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from edge_agent.config import Broker, Config, Tls

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
    "board",
    "journal",
    "delivery",
    "priorities",
    "coalesce",
    "ttl_s",
    "encrypt",
    "small",
    "pad",
    "unsure_below",
    "peers",
]


_PEERS = (
    ("neighbours", 0, 23, 16),
    ("rows", 1, 64, 16),
    ("depth", 0, 254, 3),
    ("ttl_h", 1, 32767, 720),
)


def fill(config: "Config", broker: "type[Broker]", fields: "dict[str, Any]") -> None:
    """Check every field and set the attributes of `config`."""
    _known(fields, _TOP, "")
    config.agent = _hex(fields, "agent", "", 8)
    config.key = _hex(fields, "key", "", 32, secret=True)
    config.generation = _int(fields, "generation", "", 0, 255, 0)
    config.root = _text(fields, "root", "", "qis/1")
    _check_root(config.root)
    config.domain = _text(fields, "domain", "", "")
    config.domain_id = _hex(fields, "domain_id", "", 8, b"")
    config.model = _text(fields, "model", "", "")
    config.broker = broker(_section(fields, "broker"))
    config.sensor = _section(fields, "sensor")
    config.board = _section(fields, "board")
    config.stall_s = _int(config.sensor, "stall_s", "sensor", 0, 86400, 60)
    _read_journal(config, _section(fields, "journal"))
    _read_delivery(config, _section(fields, "delivery"))
    _read_records(config, fields)


def _read_journal(config: "Config", fields: "dict[str, Any]") -> None:
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
    config.journal_path = _text(fields, "path", where, "journal")
    config.segment_bytes = _int(fields, "segment_bytes", where, 1024, 1 << 20, 32768)
    config.max_segments = _int(fields, "max_segments", where, 8, 240, 64)
    reserve = fields.get("reserve", [4, 8, 0])
    if (
        not isinstance(reserve, (list, tuple))
        or len(reserve) != 3
        or any(not is_int(r) or r < 0 for r in reserve)
    ):
        raise bad("journal.reserve", reserve, "three numbers of segments, [urgent, normal, bulk]")
    # One segment a priority, two for the quarantine, two for damaged ones kept to look at.
    if sum(reserve) + 7 > config.max_segments:
        raise bad("journal.reserve", reserve, "at most max_segments - 7 in all")
    config.reserve = tuple(reserve)
    config.policy = _choice(fields, "policy", where, ("drop-oldest", "drop-new"))
    config.sync = _choice(fields, "sync", where, ("batch", "every"))
    config.batch = _int(fields, "batch", where, 1, 64, 8)
    config.batch_ms = _int(fields, "batch_ms", where, 0, 3600000, 5000)


def _read_delivery(config: "Config", fields: "dict[str, Any]") -> None:
    where = "delivery"
    _known(
        fields,
        ["window", "custody", "pace_per_s", "ack_timeout_s", "duty_s", "duty_cap_s", "late_s"],
        where,
    )
    config.window = _int(fields, "window", where, 1, 64, 8)
    config.custody = _int(fields, "custody", where, 1, 1024, 32)
    config.pace_per_s = _int(fields, "pace_per_s", where, 1, 10000, 20)
    config.ack_timeout_s = _int(fields, "ack_timeout_s", where, 1, 3600, 20)
    config.duty_s = _int(fields, "duty_s", where, 0, 86400, 0)
    config.duty_cap_s = _int(fields, "duty_cap_s", where, 1, 3600, 60)
    config.late_s = _int(fields, "late_s", where, 1, 86400, 300)


def _read_records(config: "Config", fields: "dict[str, Any]") -> None:
    priorities = _section(fields, "priorities")
    for label in sorted(priorities):
        if not is_int(priorities[label]) or not 0 <= priorities[label] <= 2:
            raise bad("priorities." + str(label), priorities[label], "0 urgent, 1 normal or 2 bulk")
    config.priorities = priorities
    coalesce = fields.get("coalesce", [])
    if not isinstance(coalesce, list) or any(not isinstance(x, str) for x in coalesce):
        raise bad("coalesce", coalesce, "a list of labels")
    config.coalesce = coalesce
    config.ttl_s = _int(fields, "ttl_s", "", 0, 0xFFFFFFFF, 0)
    config.encrypt = _bool(fields, "encrypt")
    config.small = _bool(fields, "small")
    config.pad = _int(fields, "pad", "", 0, 512, 0)
    if 0 < config.pad < 300 and not (config.small and config.pad == 222):
        raise bad("pad", config.pad, "0, 300..512, or 222 together with small")
    config.unsure_below = _int(fields, "unsure_below", "", 0, 255, 0)
    config.peers = None
    if "peers" in fields:
        peers = _section(fields, "peers")
        _known(peers, [name for name, _, _, _ in _PEERS], "peers")
        config.peers = {}
        for name, low, high, default in _PEERS:
            config.peers[name] = _int(peers, name, "peers", low, high, default)


def _check_root(root: str) -> None:
    # A wildcard or an empty level would subscribe to, or publish on, other topics.
    levels = root.split("/")
    if "" in levels or any(c in root for c in "+#\x00") or len(root) > 64:
        raise bad("root", root, "topic levels like qis/1, without + and #")


def fill_broker(broker: "Broker", tls_class: "type[Tls]", fields: "dict[str, Any]") -> None:
    _known(
        fields,
        ["host", "port", "username", "password", "keepalive_s", "connect_timeout_s", "tls"],
        "broker",
    )
    tls = fields.get("tls")
    broker.host = _text(fields, "host", "broker", "localhost")
    broker.port = _int(fields, "port", "broker", 1, 65535, 1883 if tls is None else 8883)
    broker.username = _text(fields, "username", "broker", "")
    broker.password = _text(fields, "password", "broker", "", secret=True)
    broker.keepalive_s = _int(fields, "keepalive_s", "broker", 1, 65535, 30)
    broker.connect_timeout_s = _int(fields, "connect_timeout_s", "broker", 1, 600, 10)
    broker.tls = None if tls is None else tls_class(tls)


def fill_tls(tls: "Tls", fields: "dict[str, Any]") -> None:
    _known(fields, ["ca", "cert", "key", "fingerprint", "server_name"], "broker.tls")
    tls.ca = _text(fields, "ca", "broker.tls", "")
    tls.cert = _text(fields, "cert", "broker.tls", "")
    tls.key = _text(fields, "key", "broker.tls", "")
    tls.fingerprint = _hex(fields, "fingerprint", "broker.tls", 32, b"")
    tls.server_name = _text(fields, "server_name", "broker.tls", "")
    if not tls.ca and not tls.fingerprint:
        raise ConfigError(
            "neither ca nor fingerprint is given",
            "broker.tls",
            "Name the PEM file of the certificate authority, or the SHA-256 of the "
            "broker's certificate",
        )
    if bool(tls.cert) != bool(tls.key):
        raise ConfigError("cert and key go together", "broker.tls", "Give both or neither")


def _known(fields: "dict[str, Any]", names: "list[str]", where: str) -> None:
    if not isinstance(fields, dict):
        raise bad(where or "configuration", fields, "a JSON object")
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
        raise bad(name, value, "a JSON object")
    return value


def _join(where: str, name: str) -> str:
    return where + "." + name if where else name


def _int(fields: "dict[str, Any]", name: str, where: str, low: int, high: int, default: int) -> int:
    value: int = fields.get(name, default)
    if not is_int(value) or not low <= value <= high:
        raise bad(_join(where, name), value, span(low, high))
    return value


def _text(
    fields: "dict[str, Any]", name: str, where: str, default: str, secret: bool = False
) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str):
        if secret:
            raise ConfigError("not a text (not shown)", _join(where, name), "Write a text")
        raise bad(_join(where, name), value, "a text")
    return value


def _choice(fields: "dict[str, Any]", name: str, where: str, allowed: "tuple[str, ...]") -> str:
    value: str = fields.get(name, allowed[0])
    if value not in allowed:
        raise bad(_join(where, name), value, " or ".join('"' + a + '"' for a in allowed))
    return value


def _bool(fields: "dict[str, Any]", name: str) -> bool:
    value = fields.get(name, False)
    if value is not True and value is not False:
        raise bad(name, value, "true or false")
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
