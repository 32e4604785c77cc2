"""What mosquitto refused, counted from what it says. Pure.

MQTT 3.1.1 has no word for "you may not": a publish that the rules forbid is acknowledged
and dropped, and only the broker's log at its finest level tells. So that level is read, here,
and everything in it but refusals and errors is thrown away. No payload and no password ever
stands in that log.

Kinds: `login` (unknown user, wrong password, revoked), `publish` (a topic that is not the
device's), `subscribe` (likewise; the broker grants it and delivers nothing), `tls` (a
handshake that failed: a certificate that is not trusted, an old version, or no TLS at all). A
connection that only ends is not refused, although OpenSSL calls that an error, too: devices
lose theirs whenever a link breaks, and a scanner that says nothing asks for nothing.
"""

import re
from typing import Any

KINDS = ("login", "publish", "subscribe", "tls")
WHO_MAX = 256
NEWEST = 20

_TIME = rb"(?:\d+: )?"
_DENIED = re.compile(_TIME + rb"Denied PUBLISH from (\S+) \(d\d, q\d, r\d, m\d+, '([^']*)'")
_LOGIN = re.compile(_TIME + rb"Sending CONNACK to (\S+) \(0, ([1-9])\)")
_GRANT = re.compile(_TIME + rb"(\S+) [012] (\S.*)")
_TLS = re.compile(
    _TIME + rb"(?:OpenSSL Error\[0\]|Client connection from (\S+) failed): (?!.*unexpected eof)(.*)"
)
_KEEP = re.compile(
    _TIME
    + rb"(?:Error|Warning|mosquitto version|Opening|Reloading|Unable|Out of|Socket error|\[?FATAL)"
)


class Refusals:
    """Counts by kind and by who, and the newest few.

    root: first topic levels. trusted: users that may subscribe to what they like.
    """

    def __init__(self, root: str, trusted: "frozenset[str]" = frozenset()) -> None:
        self._root = root + "/"
        self._trusted = trusted
        self.counts = dict.fromkeys(KINDS, 0)
        self.by: dict[str, int] = {}
        self.newest: list[dict[str, Any]] = []

    def restore(self, state: Any) -> None:
        """Go on from an earlier `as_dict`; anything else is ignored."""
        if isinstance(state, dict) and isinstance(state.get("refused"), dict):
            for kind in KINDS:
                value = state["refused"].get(kind)
                self.counts[kind] = value if isinstance(value, int) else 0
            by = state.get("by")
            if isinstance(by, dict):
                self.by = {str(k): v for k, v in by.items() if isinstance(v, int)}

    def line(self, line: bytes, now_s: int) -> bool:
        """Take one line in; True when it is worth keeping in a log."""
        body = line.partition(b": ")[2] or line
        first = body[:1]
        if first == b"D":
            found = _DENIED.match(line)
            if found:
                self._note("publish", found[1], found[2], now_s)
        elif first == b"S":
            found = _LOGIN.match(line)
            if found:
                self._note("login", found[1], b"", now_s)
        elif first in (b"O", b"C"):
            found = _TLS.match(line)
            if found:
                self._note("tls", found[1] or b"unknown", found[2], now_s)
        elif first != b"R" and first != b"\t":
            found = _GRANT.match(line)
            if found and not self._own(found[1], found[2]):
                self._note("subscribe", found[1], found[2], now_s)
        return _KEEP.match(line) is not None

    def _own(self, who: bytes, topic: bytes) -> bool:
        name = who.decode("utf-8", "replace")
        mine = name in self._trusted or name.startswith(("gateway-", "route-"))
        return mine or topic.decode("utf-8", "replace").startswith(self._root + name + "/")

    def _note(self, kind: str, who: bytes, what: bytes, now_s: int) -> None:
        self.counts[kind] += 1
        name = who.decode("utf-8", "replace")[:64]
        if name in self.by or len(self.by) < WHO_MAX:
            self.by[name] = self.by.get(name, 0) + 1
        entry = {"utc_s": now_s, "kind": kind, "who": name}
        if what:
            entry["what"] = what.decode("utf-8", "replace")[:200]
        self.newest = [entry, *self.newest][:NEWEST]

    def as_dict(self) -> dict[str, Any]:
        return {"refused": dict(self.counts), "by": dict(self.by), "newest": list(self.newest)}

    def prometheus(self) -> str:
        lines = [
            "# HELP edge_gateway_broker_refused_total what the broker refused",
            "# TYPE edge_gateway_broker_refused_total counter",
        ]
        for kind, count in self.counts.items():
            lines.append(f'edge_gateway_broker_refused_total{{kind="{kind}"}} {count}')
        return "\n".join(lines) + "\n"
