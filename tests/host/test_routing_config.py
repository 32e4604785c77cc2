"""The section "routing" of gateway.json: every mistake names its field, every route is made."""

import json

import pytest
from routing_kit import Site

from edge_agent.errors import ConfigError, EdgeError
from gateway.config import GatewayConfig
from gateway.directory import Directory
from gateway.network import Network
from gateway.routes.http import near
from gateway.routing_config import RoutingConfig


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("config"), "north", {})
    other = Site(tmp_path_factory.mktemp("config"), "south", {})
    made.network.add(other.network.card("south", "127.0.0.1:9"))
    return made


def settings(site, **routing):
    path = site.folder / "gateway.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "routing": routing}))
    return RoutingConfig(GatewayConfig(site.folder))


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"colour": 1}, "routing.colour"),
        ({"port": 70_000}, "routing.port"),
        ({"port": True}, "routing.port"),
        ({"host": ""}, "routing.host"),
        ({"lifetime_s": 1}, "routing.lifetime_s"),
        ({"deadline_ms": 0}, "routing.deadline_ms"),
        ({"watch": "yes"}, "routing.watch"),
        ({"watch_near": 101}, "routing.watch_near"),
        ({"rules": {"group": 0}}, "routing.rules.group"),
        ({"rules": []}, "routing.rules"),
        ({"announce": 5}, "routing.announce"),
        ({"routes": {}}, "routing.routes"),
        ({"routes": [{"kind": "folder", "path": 5}]}, "routing.routes[0].path"),
        ({"routes": [{"kind": "sql", "dsn": 5}]}, "routing.routes[0].dsn"),
        ({"routes": [{"kind": "http", "directories": "self"}]}, "routing.routes[0].directories"),
        ({"routes": [{"kind": "dht", "port": "4222"}]}, "routing.routes[0].port"),
        ({"routes": [{"kind": "dht", "seeds": [7]}]}, "routing.routes[0].seeds"),
        ({"routes": [{"kind": "pubsub", "tls": True}]}, "routing.routes[0].tls"),
        ({"routes": [{"kind": "pigeon"}]}, "routing.routes[0]"),
        ({"routes": ["folder"]}, "routing.routes[0]"),
        ({"routes": [{"kind": "folder", "path": "x", "speed": 1}]}, "routes[0].speed"),
    ],
)
def test_what_is_wrong_is_named(site, wrong, where):
    with pytest.raises(ConfigError) as caught:
        settings(site, **wrong)
    assert where in caught.value.where and caught.value.fix


def test_defaults_are_safe(site):
    found = settings(site)
    assert found.host == "127.0.0.1" and not found.directory and found.routes == []


def test_every_route_is_made(site):
    (site.folder / "share").mkdir(exist_ok=True)
    found = settings(
        site,
        routes=[
            {"kind": "folder", "path": "share"},
            {"kind": "sql", "path": "pointers.db"},
            {"kind": "sql", "dsn": "postgresql://nobody@127.0.0.1:9/none"},
            {"kind": "http", "directories": ["self", "south"]},
            {"kind": "pubsub"},
            {"kind": "pubsub", "host": "broker.example", "port": 8883, "user": "u"},
            {"kind": "dht", "host": "127.0.0.1", "port": 0, "seeds": []},
        ],
    )
    network = Network.load(site.folder)
    directory = Directory()
    asked = []

    def far(gateway):
        asked.append(gateway)
        return near(directory, gateway)

    made = found.make_routes(network, far, lambda: near(directory, network.gateway))
    assert [route.name for route in made] == [
        "folder", "sqlite", "postgres", "http", "pubsub", "pubsub", "dht",
    ]  # fmt: skip
    assert asked == [network.find("south").gateway]


@pytest.mark.parametrize(
    "route",
    [
        {"kind": "folder"},
        {"kind": "http"},
        {"kind": "http", "directories": ["nobody"]},
        {"kind": "http", "directories": []},
        {"kind": "sql"},
        {"kind": "pubsub", "host": "broker.example"},
    ],
)
def test_a_route_that_cannot_be_made_says_why(site, route):
    found = settings(site, routes=[route])
    directory = Directory()
    with pytest.raises(EdgeError) as caught:
        found.make_routes(
            Network.load(site.folder),
            lambda g: near(directory, g),
            lambda: near(directory, b"x" * 8),
        )
    assert caught.value.fix
