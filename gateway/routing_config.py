"""The section "routing" of gateway.json, and the routes that it names.

    "routing": {
      "host": "127.0.0.1",      where peers reach this gateway; "0.0.0.0" for all interfaces
      "port": 8470,             HTTPS for peers
      "api_port": 8471,         HTTP on loopback for this machine: POST /query, GET /status
      "routes": [               one or several; values announced go to all of them
        {"kind": "folder", "path": "/mnt/share/pointers"},
        {"kind": "sql", "path": "pointers.db"},        or "dsn": "postgresql://..."
        {"kind": "http", "directories": ["name of a peer", "self"]},
        {"kind": "pubsub"},     this gateway's broker, or host, port, user, password, tls
        {"kind": "dht", "host": "0.0.0.0", "port": 4222}],
      "directory": false,       keep pointers for others (the other end of "http")
      "lifetime_s": 21600,      of a pointer; renewed at half of it
      "deadline_ms": 2000,      of a query that names none
      "ask_near": true,         queries show their vector to origins, which then know more
      "watch": true, "watch_near": 50,     least likeness to be told of, percent: reads as a
                                cosine, whatever the domain's measure is (gateway.likeness)
      "similarity": {"watch": "plant.measures:spectral"},    a function of your own for a
                                domain, instead of the measure in its file (gateway.similarity):
                                ranks here; where others look for things stays the codebook's
      "agents": true,           announce what each device knows, as one vector (gateway.agents)
      "learner": {...},         heads for devices, see gateway.learner_settings
      "announce": {...},        caps and limits, see gateway.announce_rows.Settings
      "rules": {...}            for every peer, see gateway.peers.Rules; the entry of a peer
    }                           in network.json says what differs for it

Paths are relative to the gateway's folder. Ports may be 0 for any that is free.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_agent.errors import ConfigError
from gateway.config import GatewayConfig
from gateway.learner_settings import LearnerSettings
from gateway.network import Network, join_endpoint
from gateway.peers import Rules
from gateway.pointer import AHEAD_MAX_S
from gateway.routes import Route
from gateway.routes.http import Keeper

DEFAULTS: dict[str, Any] = {
    "host": "127.0.0.1",
    "port": 8470,
    "api_port": 8471,
    "routes": [],
    "directory": False,
    "lifetime_s": 21_600,
    "deadline_ms": 2000,
    "watch": True,
    "watch_near": 50,
    "similarity": {},
    "agents": True,
    "ask_near": True,
    "announce": {},
    "learner": {},
    "rules": {},
}
_ROUTES = {
    "folder": {"path"},
    "sql": {"path", "dsn"},
    "http": {"directories"},
    "pubsub": {"host", "port", "user", "password", "tls", "root"},
    "dht": {"host", "port", "seeds"},
}
# What a field is written as; everything else is a text.
_LISTS, _PORT, _FILES = {"directories", "seeds"}, "port", "tls"
SELF = "self"


class RoutingConfig:
    """Checked settings. ConfigError names the field."""

    def __init__(self, config: GatewayConfig) -> None:
        self.gateway = config
        self._where = f"{config.path}: routing"
        fields = {**DEFAULTS, **config.routing}
        for name in fields:
            if name not in DEFAULTS:
                raise ConfigError("unknown field", self._at(name), f"Known: {sorted(DEFAULTS)}")
        self.host = self._text(fields, "host")
        self.port = self._number(fields, "port", 0, 65_535)
        self.api_port = self._number(fields, "api_port", 0, 65_535)
        self.lifetime_s = self._number(fields, "lifetime_s", 60, AHEAD_MAX_S)
        self.deadline_s = self._number(fields, "deadline_ms", 50, 30_000) / 1000
        self.watch_near = self._number(fields, "watch_near", -100, 100) / 100
        self.watch = self._flag(fields, "watch")
        self.ask_near = self._flag(fields, "ask_near")
        self.agents = self._flag(fields, "agents")
        self.directory = self._flag(fields, "directory")
        self.similarity = self._section(fields, "similarity")
        for name, measure in self.similarity.items():
            if not isinstance(measure, str):
                where = self._at(f"similarity.{name}")
                raise ConfigError(f"{measure!r} is not text", where, 'Write "module:function"')
        self.announce = self._section(fields, "announce")
        learner = self._section(fields, "learner")
        self.learner = LearnerSettings.parse(learner, self._at("learner"))
        self.rules = self._section(fields, "rules")
        Rules.parse(self.rules, self._at("rules"))
        routes = fields["routes"]
        if not isinstance(routes, list):
            raise ConfigError("not a list", self._at("routes"), "Write [...]")
        self.routes = [self._route(entry, i) for i, entry in enumerate(routes)]

    @property
    def database(self) -> Path:
        return self.gateway.folder / "routing" / "routing.db"

    @property
    def codebooks(self) -> Path:
        return self.gateway.folder / "codebooks"

    @property
    def token(self) -> Path:
        return self.gateway.folder / "routing" / "api.token"

    def _at(self, name: str) -> str:
        return f"{self._where}.{name}"

    def _text(self, fields: dict[str, Any], name: str) -> str:
        value = fields[name]
        if not isinstance(value, str) or not value:
            raise ConfigError("missing or not text", self._at(name), "Write a text in quotes")
        return value

    def _number(self, fields: dict[str, Any], name: str, low: int, high: int) -> int:
        value = fields[name]
        if type(value) is not int or not low <= value <= high:
            raise ConfigError(
                f"{value!r} is not allowed", self._at(name), f"Write a whole number {low}..{high}"
            )
        return value

    def _flag(self, fields: dict[str, Any], name: str) -> bool:
        value = fields[name]
        if not isinstance(value, bool):
            raise ConfigError(f"{value!r} is not allowed", self._at(name), "Write true or false")
        return value

    def _section(self, fields: dict[str, Any], name: str) -> dict[str, Any]:
        value = fields[name]
        if not isinstance(value, dict):
            raise ConfigError("not a JSON object", self._at(name), "It starts with {")
        return value

    def _route(self, entry: Any, i: int) -> dict[str, Any]:
        where = self._at(f"routes[{i}]")
        if not isinstance(entry, dict) or entry.get("kind") not in _ROUTES:
            raise ConfigError("no route", where, f'Write {{"kind": ...}}, one of {list(_ROUTES)}')
        known = _ROUTES[entry["kind"]]
        for name in entry:
            if name != "kind" and name not in known:
                raise ConfigError("unknown field", f"{where}.{name}", f"Known: {sorted(known)}")
            self._route_field(f"{where}.{name}", name, entry[name])
        return entry

    @staticmethod
    def _route_field(where: str, name: str, value: Any) -> None:
        if name in _LISTS:
            good = isinstance(value, list) and all(isinstance(one, str) for one in value)
            fix = 'Write a list of texts, like ["name"]'
        elif name == _PORT:
            good = type(value) is int and 0 <= value <= 65_535
            fix = "Write a whole number 0..65535"
        elif name == _FILES:
            good = value is None or isinstance(value, dict)
            fix = 'Write {"ca": "FILE.pem"}, or leave it out'
        else:
            good = isinstance(value, str) and (value != "" or name in ("user", "password"))
            fix = "Write a text in quotes"
        if not good:
            raise ConfigError(f"{value!r} is not allowed", where, fix)

    # -- routes -------------------------------------------------------------------------

    def make_routes(
        self, network: Network, keeper: Callable[[bytes], Keeper], here: Callable[[], Keeper]
    ) -> list[Route]:
        """Unopened routes. keeper(gateway): a directory elsewhere; here(): one's own."""
        return [self._make(entry, network, keeper, here) for entry in self.routes]

    def _make(
        self,
        entry: dict[str, Any],
        network: Network,
        keeper: Callable[[bytes], Keeper],
        here: Callable[[], Keeper],
    ) -> Route:
        me, folder, kind = network.gateway, self.gateway.folder, entry["kind"]

        def known() -> list[bytes]:
            return [peer.gateway for peer in network.peers() if peer.revoked_ms is None]

        try:
            if kind == "folder":
                from gateway.routes.folder import FolderRoute

                return FolderRoute(me, folder / entry["path"], known=known)
            if kind == "sql" and "dsn" in entry:
                from gateway.routes.postgres import PostgresRoute

                return PostgresRoute(me, entry["dsn"], known=known)
            if kind == "sql":
                from gateway.routes.sqlite import SqliteRoute

                return SqliteRoute(me, folder / entry["path"], known=known)
            if kind == "http":
                from gateway.routes.http import HttpRoute

                keepers = [
                    here() if name == SELF else keeper(network.find(name).gateway)
                    for name in entry["directories"]
                ]
                return HttpRoute(me, keepers, known=known)
            if kind == "pubsub":
                return self._pubsub(entry, me, known)
            from gateway.routes.dht import DhtRoute

            seeds = [join_endpoint(host, port) for host, port in network.seeds]
            return DhtRoute(
                me,
                folder / "routing" / "dht",
                network.network,
                host=entry.get("host", "0.0.0.0"),  # noqa: S104 - a node is there for others
                port=entry.get("port", 0),
                seeds=entry.get("seeds", seeds),
            )
        except KeyError as error:
            raise ConfigError(
                "missing", f"{self._at('routes')}: {kind}: {error.args[0]}", "Name it"
            )

    def _pubsub(self, entry: dict[str, Any], me: bytes, known: Callable[[], list[bytes]]) -> Route:
        from gateway.routes.pubsub import PubsubRoute

        own = "host" not in entry
        gateway = self.gateway
        return PubsubRoute(
            me,
            gateway.host if own else entry["host"],
            gateway.port if own else entry["port"],
            root=entry.get("root", gateway.root),
            user=gateway.user if own else entry.get("user", ""),
            password=gateway.password if own else entry.get("password", ""),
            tls=gateway.tls if own else entry.get("tls"),
            known=known,
        )
