"""`edge-gateway network ...`: found or join a network, exchange cards, revoke."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from edge_agent.errors import ConfigError, StoreError
from gateway import network
from gateway.cards import CARD_MAX, Peer, fingerprint, split_endpoint
from gateway.config import GatewayConfig
from gateway.network import SKETCHES, Network
from gateway.peers import Rules


def _say(options: argparse.Namespace, found: dict[str, Any], text: str) -> int:
    print(json.dumps(found, indent=1) if options.json else text)
    return 0


def _endpoint(text: str) -> str:
    """argparse type: a checked "host:port"; also "", the default."""
    try:
        if text:
            split_endpoint(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not host:port")
    return text


def do_init(options: argparse.Namespace) -> int:
    if options.join is not None:
        if options.name or options.sketch or options.seed:
            raise ConfigError(
                "the file says that already", "--join", "Leave out NAME, --sketch and --seed"
            )
        made = network.join(options.dir, options.join, options.endpoint)
    else:
        if not options.name:
            raise ConfigError("missing", "NAME", "Name the network, or give --join FILE")
        key = b"" if options.open else os.urandom(32)
        made = network.create(
            options.dir,
            options.name,
            key,
            sketch=options.sketch,
            seeds=options.seed,
            endpoint=options.endpoint,
        )
    sealed = "sealed with a network key" if made.key else "open: anyone can read its pointers"
    text = f"network {made.name}, {sealed}, sketch {made.sketch}\n"
    if options.join is None:
        text += "let others join with the file of: edge-gateway network share --out FILE\n"
    text += "then exchange cards: edge-gateway network card --out FILE, network add FILE"
    return _say(options, _summary(made), text)


def do_share(options: argparse.Namespace) -> int:
    here = Network.load(options.dir)
    here.share(options.out)
    text = f"{options.out} lets a gateway join {here.name}"
    if here.key:
        text += "; it holds the network key: carry it to members only"
    return _say(options, {"network": here.name, "file": str(options.out)}, text)


def do_card(options: argparse.Namespace) -> int:
    here = Network.load(options.dir)
    if options.endpoint:
        here.set_endpoint(options.endpoint)
    endpoint = options.endpoint or here.endpoint
    card = here.card(options.name or "gw-" + here.gateway.hex()[:6], endpoint)
    try:
        options.out.write_bytes(card)
    except OSError as error:
        raise StoreError(
            error.strerror or str(error), str(options.out), "Name another file", error.errno or 0
        )
    found = {
        "gateway": here.gateway.hex(),
        "file": str(options.out),
        "fingerprint": fingerprint(here.public),
    }
    text = f"{options.out}, no secret\nfingerprint {found['fingerprint']}"
    if not endpoint:
        text += "\nno endpoint in it: others cannot call this gateway; give --endpoint HOST:PORT"
    return _say(options, found, text)


def do_add(options: argparse.Namespace) -> int:
    here = Network.load(options.dir)
    try:
        with options.card.open("rb") as file:
            card = file.read(CARD_MAX + 1)
    except OSError as error:
        raise ConfigError(error.strerror or str(error), str(options.card), "Name a card")
    peer = here.add(card, options.name)
    found = _peer(peer)
    return _say(
        options,
        found,
        f"{peer.name} is gateway {peer.gateway.hex()}"
        f"{' at ' + peer.endpoint if peer.endpoint else ''}\n"
        f"fingerprint {found['fingerprint']}: compare it with the one its owner sees",
    )


def do_revoke(options: argparse.Namespace) -> int:
    here = Network.load(options.dir)
    peer = here.find(options.peer)
    here.revoke(peer, int(time.time() * 1000))
    text = f"{peer.name} is revoked: nothing it signs is believed here any more"
    if here.key:
        text += "\nit can still read pointers: to end that, run `edge-gateway network rekey`"
    return _say(options, {"gateway": peer.gateway.hex(), "revoked": True}, text)


def do_rekey(options: argparse.Namespace) -> int:
    here = Network.load(options.dir)
    if options.join is not None:
        here.rekey(network.shared_key(options.join, here.name))
        text = f"{here.name} has the key of {options.join}"
    else:
        key = os.urandom(32)
        here.share(options.out, key)
        here.rekey(key)
        text = (
            f"{here.name} has a new key. Carry {options.out} to every member that stays:\n"
            f"edge-gateway network rekey --join {options.out.name}"
        )
    found = {"network": here.name, "file": str(options.join or options.out)}
    return _say(options, found, text + "\nuntil all have it, the two halves do not find each other")


def do_rules(options: argparse.Namespace) -> int:
    here = Network.load(options.dir)
    peer = here.find(options.peer)
    rules = dict(peer.rules)
    for text in options.change:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is no NAME=VALUE", "rules", "Write for example group=3")
        rules.pop(name, None)
        if name in ("ops", "domains") and value:
            rules[name] = value.split(",")
        elif value:
            rules[name] = int(value) if value.isdecimal() else value
    Rules.parse(rules, f"rules of {peer.name}")
    usual = GatewayConfig(options.dir).routing.get("rules", {})
    in_force = Rules.parse({**usual, **rules}, "routing.rules")
    if options.change:
        here.set_rules(peer, rules)
    found = {
        "gateway": peer.gateway.hex(),
        "ops": list(in_force.ops),
        "domains": None if in_force.domains is None else [d.hex() for d in in_force.domains],
        "per_minute": in_force.per_minute,
        "burst": in_force.burst,
        "group": in_force.group,
        "noise": in_force.noise,
    }
    lines = [f"{peer.name} may:"]
    for name, value in found.items():
        if name != "gateway":
            shown = ", ".join(value) if isinstance(value, list) else value
            note = "" if name in rules else "  (default)"
            lines.append(f"  {name:11} {'every' if value is None else shown}{note}")
    return _say(options, found, "\n".join(lines))


def do_show(options: argparse.Namespace) -> int:
    here = Network.load(options.dir)
    found = _summary(here)
    lines = [
        f"network      {here.name}, id {here.network}, {'sealed' if here.key else 'open'}",
        f"sketch       {here.sketch}",
        f"gateway      {here.gateway.hex()} at {here.endpoint or 'no endpoint'}",
        f"fingerprint  {found['fingerprint']}",
        f"seeds        {', '.join(found['seeds']) or 'none'}",
    ]
    for peer in here.peers():
        state = "revoked" if peer.revoked_ms is not None else peer.endpoint or "no endpoint"
        lines.append(f"peer         {peer.name:20} {peer.gateway.hex()} {state}")
    return _say(options, found, "\n".join(lines))


def _peer(peer: Peer) -> dict[str, Any]:
    return {
        "name": peer.name,
        "gateway": peer.gateway.hex(),
        "endpoint": peer.endpoint,
        "fingerprint": fingerprint(peer.public),
        "revoked": peer.revoked_ms is not None,
        "rules": peer.rules,
    }


def _summary(here: Network) -> dict[str, Any]:
    """Everything but the key."""
    return {
        "name": here.name,
        "network": here.network,
        "sealed": bool(here.key),
        "sketch": here.sketch,
        "gateway": here.gateway.hex(),
        "endpoint": here.endpoint,
        "fingerprint": fingerprint(here.public),
        "seeds": [network.join_endpoint(host, port) for host, port in here.seeds],
        "peers": [_peer(peer) for peer in here.peers()],
    }


def add_network_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Put `network` and what follows it into the parser of edge-gateway."""
    top = commands.add_parser(
        "network",
        help="found or join a routing network, exchange cards",
        description="Found or join a routing network, exchange cards with other gateways.",
    )
    inner = top.add_subparsers(dest="network_command", required=True, metavar="COMMAND")

    def command(name: str, do: Any, text: str) -> argparse.ArgumentParser:
        sub = inner.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.set_defaults(do=do)
        return sub

    sub = command("init", do_init, "found a network, or join one")
    sub.add_argument("name", nargs="?", default="", metavar="NAME", help="of the network")
    way = sub.add_mutually_exclusive_group()
    way.add_argument("--key", action="store_true", help="seal pointers with a new key (default)")
    way.add_argument("--open", action="store_true", help="no key: anyone can read the pointers")
    way.add_argument("--join", type=Path, metavar="FILE", help="what `network share` wrote")
    sub.add_argument("--sketch", choices=SKETCHES, default="", help="default: int4x64, or sign256")
    sub.add_argument(
        "--seed", type=_endpoint, action="append", default=[], metavar="HOST:PORT",
        help="of the DHT; the same four or more at every gateway",
    )  # fmt: skip
    sub.add_argument(
        "--endpoint", type=_endpoint, default="", metavar="HOST:PORT",
        help="where others fetch outcomes from this gateway",
    )  # fmt: skip

    sub = command("share", do_share, "write the file that lets another gateway join")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="new, mode 0600")

    sub = command("card", do_card, "write this gateway's signed card, for others to add")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE")
    sub.add_argument("--name", default="", help="how others should call it")
    sub.add_argument(
        "--endpoint", type=_endpoint, default="", metavar="HOST:PORT", help="where peers reach it"
    )

    sub = command("add", do_add, "trust the gateway of a card")
    sub.add_argument("card", type=Path, metavar="CARD", help="file from its owner")
    sub.add_argument("--name", default="", help="how to call it here")

    sub = command("revoke", do_revoke, "believe a peer no more")
    sub.add_argument("peer", metavar="PEER", help="name or gateway id")

    sub = command("rekey", do_rekey, "a new network key, which shuts revoked members out")
    way = sub.add_mutually_exclusive_group(required=True)
    way.add_argument("--out", type=Path, metavar="FILE", help="make a key, and this for the others")
    way.add_argument("--join", type=Path, metavar="FILE", help="take the key that another made")

    sub = command("rules", do_rules, "show or change what a peer may ask of this gateway")
    sub.add_argument("peer", metavar="PEER", help="name or gateway id")
    sub.add_argument(
        "change", nargs="*", metavar="NAME=VALUE",
        help="ops, domains (with commas), per_minute, burst, group, noise; NAME= for the default",
    )  # fmt: skip

    command("show", do_show, "the network and its peers")
