"""`edge-gateway explain OUTCOME`: why a device concluded what it did.

The outcome, those it was synthesised from, and so on, as a tree; for each who concluded it,
what and how surely, whether anybody confirmed it, and which last layer decided. A device that
listened to others says beside its outcome what it would have concluded alone (SPEC.md, label
19): that is `--without-peers`.

The running routing process is asked, because it can fetch what others hold. Without one the
tree ends where this gateway's own outcomes end.
"""

import argparse
import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_agent.domain import Domain
from edge_agent.errors import ConfigError, StoreError
from gateway.cli_routing import TOKEN, call
from gateway.config import Domains, GatewayConfig
from gateway.judge import outcome_of
from gateway.keys import Registry
from gateway.lineage import Known, Lineage, Node
from gateway.opening import opened
from gateway.records import read_stored
from gateway.reports import name_of
from gateway.search import Search
from gateway.store import Store
from gateway.voucher import Facts, Voucher


def explained(
    root: Node,
    domains: Mapping[bytes, Domain],
    origins: Mapping[bytes, str],
    devices: Mapping[bytes, str],
) -> dict[str, Any]:
    """A tree as JSON, with what can be counted in it. origins: gateway id -> its name here."""
    if root.known is None:
        raise ConfigError(
            f"{root.outcome.hex()} is not known", "outcome", root.missing or "Give another id"
        )
    nodes = [node for node in _all(root) if not node.again]
    known = [node.known for node in nodes if node.known is not None]
    return {
        "tree": _node(root, domains, origins, devices),
        "outcomes": len(nodes),
        "synthesised": sum(bool(one.parents or one.record.outcome.depth) for one in known),
        "synthesis_count": root.known.record.outcome.depth,
        "gateways": len({one.gateway for one in known}),
        "devices": len({one.facts.agent for one in known}),
        "missing": sum(node.known is None for node in nodes),
    }


def _all(root: Node) -> Iterator[Node]:
    yield root
    for parent in root.parents:
        yield from _all(parent)


def _node(
    node: Node,
    domains: Mapping[bytes, Domain],
    origins: Mapping[bytes, str],
    devices: Mapping[bytes, str],
) -> dict[str, Any]:
    found: dict[str, Any] = {"outcome": node.outcome.hex()}
    if node.known is None:
        return found | {"missing": node.missing, "parents": []}
    one = node.known
    facts, outcome = one.facts, one.record.outcome
    domain = domains.get(one.record.domain_id)
    labels: Sequence[str] = domain.labels if domain else ()
    results: Sequence[str] = domain.results if domain else ()
    result, true_label = outcome.result, outcome.label
    if facts.judged is not None:
        result, true_label = facts.judged[0], facts.judged[1]
    alone = None
    if outcome.alone is not None:
        alone = {
            "label": name_of(labels, outcome.alone[0]) or outcome.alone[0],
            "confidence": outcome.alone[1],
        }
    return found | {
        "gateway": one.gateway.hex(),
        "origin": origins.get(one.gateway, one.gateway.hex()),
        "agent": facts.agent.hex(),
        "device": devices.get(facts.agent, ""),
        "label": name_of(labels, outcome.label) or outcome.label,
        "confidence": outcome.confidence,
        "confirmed": one.confirmed,
        "result": name_of(results, result) if result is not None else None,
        "true_label": (name_of(labels, true_label) or true_label) if one.confirmed else None,
        "head": outcome.head,
        "depth": outcome.depth,
        "alone": alone,
        "time": datetime.fromtimestamp(facts.utc_ms / 1000, UTC).isoformat(timespec="seconds"),
        "again": node.again,
        "parents": [_node(parent, domains, origins, devices) for parent in node.parents],
    }


# -- text ---------------------------------------------------------------------------------


def tree_text(found: dict[str, Any]) -> str:
    """For people."""
    lines = list(_lines(found["tree"], "", ""))
    steps = found["synthesis_count"]
    lines.append(
        f"{found['outcomes']} outcomes of {found['devices']} devices at {found['gateways']} "
        f"gateways, {found['synthesised']} of them synthesised, synthesis count {steps}"
    )
    if found["missing"]:
        lines.append(f"{found['missing']} could not be found")
    return "\n".join(lines)


def _lines(node: dict[str, Any], before: str, below: str) -> Iterator[str]:
    if "missing" in node:
        yield f"{before}{node['outcome']}  {node['missing']}"
        return
    who = node["device"] or node["agent"]
    told = [f"{node['label']} {_percent(node['confidence'])}"]
    if node["confirmed"]:
        same = node["true_label"] in (None, node["label"])
        told.append("confirmed" if same else f"corrected: {node['true_label']}")
    if node["head"] is not None:
        told.append(f"head {node['head']}")
    if node["depth"]:
        told.append(f"synthesis {node['depth']}")
    if node["alone"] is not None:
        told.append(f"alone {node['alone']['label']} {_percent(node['alone']['confidence'])}")
    yield f"{before}{node['outcome']}  {node['origin']}/{who}  {', '.join(told)}"
    if node["again"] and node["depth"]:
        yield f"{below}`- as above"
        return
    for i, parent in enumerate(node["parents"]):
        twig, rest = ("`- ", "   ") if i == len(node["parents"]) - 1 else ("|- ", "|  ")
        yield from _lines(parent, below + twig, below + rest)


def _percent(confidence: "int | None") -> str:
    return "" if confidence is None else f"{confidence / 2.55:.0f} %"


def alone_text(node: dict[str, Any]) -> str:
    """What the device would have decided without others."""
    said = f"{node['label']} {_percent(node['confidence'])}"
    if node["alone"] is None:
        return f"{said}: nothing of others took part"
    own = f"{node['alone']['label']} {_percent(node['alone']['confidence'])}"
    with_what = []
    if node["head"] is not None:
        with_what.append(f"head {node['head']}")
    if node["parents"]:
        with_what.append(f"{len(node['parents'])} outcomes of others")
    return f"{own} alone; {said} with {' and '.join(with_what) or 'others'}"


# -- the command --------------------------------------------------------------------------


class Here:
    """Sources without a routing process: this gateway's own outcomes."""

    def __init__(self, config: GatewayConfig, store: Store, registry: Registry) -> None:
        self.gateway = config.gateway
        self._store = store
        self._secret = registry.secret
        self._rows: dict[bytes, int | None] = {}

    def local(self, id_: bytes) -> Known | None:
        if id_ not in self._rows:
            search = Search(self._store)
            search.want([id_])
            while id_ not in search.found and search.step(4096):
                pass
            self._rows[id_] = search.found.get(id_)
        row = self._rows[id_]
        frame = self._store.frame(row) if row is not None else None
        moment = self._store.moment(row) if row is not None else None
        if frame is None or moment is None:
            return None
        stored = read_stored(frame, self._secret)
        utc_ms = (moment["utc_s"] or 0) * 1000 or moment["arrival_ms"]
        facts = Facts(stored.agent, id_, utc_ms, 0, self._store.judgement(id_))
        return Known(self.gateway, facts, stored.record)

    def found(self, id_: bytes) -> bytes | None:
        return None

    def others(self) -> list[bytes]:
        return []

    async def fetch(self, *_: Any) -> list[Voucher]:
        return []


def ask(folder: Path, outcome: bytes) -> dict[str, Any]:
    """The running routing process, or what can be told without one."""
    if (folder / TOKEN).exists():
        try:
            return call(folder, "POST", "/explain", {"outcome": outcome.hex()}, 60.0)
        except StoreError:
            pass  # it ended without tidying up
    with opened(folder) as (config, store, registry):
        root = asyncio.run(Lineage(Here(config, store, registry)).tree(outcome))
        devices = {device.agent: device.name for device in registry.devices()}
        found = explained(root, Domains(config.domains), {config.gateway: "here"}, devices)
    if found["missing"]:
        found["note"] = "the routing process is not running: nobody else was asked"
    return found


def do_explain(options: argparse.Namespace) -> int:
    found = ask(options.dir, outcome_of(options.outcome))
    if options.without_peers:
        root = found["tree"]
        found = {
            name: root[name]
            for name in ("outcome", "label", "confidence", "head", "alone")
        } | {"parents": [parent["outcome"] for parent in root["parents"]]}  # fmt: skip
        print(json.dumps(found, indent=1) if options.json else alone_text(found))
        return 0
    print(json.dumps(found, indent=1) if options.json else tree_text(found))
    if not options.json and "note" in found:
        print(found["note"])
    return 0
