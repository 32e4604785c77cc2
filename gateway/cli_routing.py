"""`edge-gateway route`, `query`, `similar` and `learner`."""

import argparse
import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_agent.errors import ConfigError, StoreError
from gateway.config import GatewayConfig
from gateway.files import read_private
from gateway.supervise import Supervised, end_with_parent

TOKEN = Path("routing") / "api.token"


def _missing(error: ImportError) -> StoreError:
    return StoreError(
        f"{error.name} is not installed", "routing", "pip install 'edge-agent[gateway]'"
    )


def child_router(folder: Path) -> Supervised:
    """`edge-gateway route` beside the ingest process."""
    command = [sys.executable, "-m", "gateway.cli", "-C", str(folder), "route", "--child"]
    return Supervised("routing", command)


def call(folder: Path, method: str, path: str, body: Any, seconds: float) -> dict[str, Any]:
    """Ask the running router over loopback. ConfigError when it refuses the question."""
    GatewayConfig(folder)
    file = folder / TOKEN
    if not file.exists():
        raise StoreError(
            "the routing process is not running", str(folder), "Run: edge-gateway route"
        )
    try:
        import httpx
    except ImportError as error:
        raise _missing(error)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for each request
    access = json.loads(read_private(file))
    try:
        answer = httpx.request(
            method,
            f"http://127.0.0.1:{access['port']}{path}",
            json=body,
            headers={"authorization": f"Bearer {access['token']}"},
            timeout=seconds,
            trust_env=False,
        )
        found = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise StoreError(
            f"the routing process does not answer ({type(error).__name__})",
            f"127.0.0.1:{access['port']}",
            "See its log, or start it again",
        )
    if answer.status_code != 200:
        raise ConfigError(
            found.get("error", "refused"), found.get("where", "query"), found.get("fix", "")
        )
    return dict(found)


def do_route(options: argparse.Namespace) -> int:
    if options.audit:
        return do_audit(options)
    if options.status:
        found = call(options.dir, "GET", "/status", None, 10.0)
        print(json.dumps(found, indent=1) if options.json else _status_text(found))
        return 0
    try:
        from gateway.router import serve
    except ImportError as error:
        raise _missing(error)
    if options.child:
        end_with_parent()
    serve(options.dir)
    return 0


def do_audit(options: argparse.Namespace) -> int:
    """Who asked this gateway for what, newest first; the routing process need not run."""
    try:
        from gateway.network import Network
        from gateway.routing_rows import read_audit
    except ImportError as error:
        raise _missing(error)
    file = GatewayConfig(options.dir).folder / "routing" / "routing.db"
    network = Network.load(options.dir)
    names = {peer.gateway: peer.name for peer in network.peers()}
    rows = read_audit(file, options.rows) if file.exists() else []
    found = [
        {**row, "gateway": row["gateway"].hex(), "name": names.get(row["gateway"], "")}
        for row in rows
    ]
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    for row in found:
        at = datetime.fromtimestamp(row["utc_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        who = row["name"] or row["gateway"] or "unknown"
        print(
            f"{at}  {who:16} {row['op'] or '-':6} {row['verdict']:12} {row['count']:4}  "
            f"{row['detail']}".rstrip()
        )
    if not found:
        print("nobody has asked")
    return 0


def _status_text(found: dict[str, Any]) -> str:
    lines = [
        f"gateway    {found['gateway']} in network {found['network']}, "
        f"{found['members']} members, peers on port {found['port']}"
    ]
    for route in found["routes"]:
        state = "up" if route["up"] else "AWAY"
        lines.append(
            f"route      {route['route']:8} {state}, {route['announced']} announced, "
            f"{route['pending']} pending, {route['watched']} watched"
        )
        at = route.get("folder") or route.get("file") or route.get("broker") or ""
        why = route.get("problem") or at
        if why and not route["up"]:
            lines.append(f"           {why}")
    if not found["routes"]:
        lines.append("route      none: write routing.routes in gateway.json")
    for name, domain in found["domains"].items():
        versions = ", ".join(map(str, domain["codebooks"]))
        lines.append(
            f"domain     {name}, codebook {versions}, {domain['standing']} standing, "
            f"{domain['waiting']} waiting"
        )
    if not found["domains"]:
        lines.append("domain     none has a codebook: copy its file into codebooks/")
    lines += [f"passed over {one}" for one in found["codebooks skipped"]]
    rejected = ", ".join(f"{k} {v}" for k, v in found["rejected"].items()) or "nothing"
    lines.append(f"queries    {found['queries']}")
    lines.append(f"rejected   {rejected}")
    return "\n".join(lines)


def do_query(options: argparse.Namespace) -> int:
    body: dict[str, Any] = {"like": _like(options.like), "k": options.k}
    for name in ("domain", "label"):
        if getattr(options, name):
            body[name] = getattr(options, name)
    if options.deadline:
        body["deadline_ms"] = options.deadline
    if options.here:
        body["here_only"] = True
    found = call(options.dir, "POST", "/query", body, 5.0 + (options.deadline or 30_000) / 1000)
    print(json.dumps(found, indent=1) if options.json else answer_text(found))
    return 0


def do_similar(options: argparse.Namespace) -> int:
    body: dict[str, Any] = {"agent": options.agent, "k": options.k}
    if options.deadline:
        body["deadline_ms"] = options.deadline
    found = call(options.dir, "POST", "/similar", body, 35.0)
    lines = [f"{one['score']:8.3f}  {one['origin']:16} {one['agent']}" for one in found["agents"]]
    lines += found["missed"] or ([] if lines else ["no agent elsewhere is known"])
    print(json.dumps(found, indent=1) if options.json else "\n".join(lines))
    return 0


def _like(text: str) -> Any:
    """An outcome id, a vector in hex, or the name of a file with a vector."""
    path = Path(text)
    try:
        if len(text) not in (32, 128) and path.is_file():
            raw = path.read_bytes()
            return raw.hex() if len(raw) == 64 else json.loads(raw)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error), text, "Give a file of 64 bytes, or of 64 numbers in JSON")
    return text


def answer_text(found: dict[str, Any]) -> str:
    """The answer as a table, its gaps last."""
    lines = []
    for part in found["labels"]:
        lines.append(f"{part['label']}: {len(part['hits'])} found")
        for hit in part["hits"]:
            state = hit["result"] or ("judged" if hit["judged"] else "")
            lines.append(
                f"  {hit['score']:8.3f}  {hit['origin']:16} {_age(hit['age_s']):>8} "
                f"{hit['outcome']} {state}"
            )
    lines.append(
        f"{found['lookups']} lookups, {found['pointers']} pointers, {found['fetched']} fetched "
        f"from {len(found['origins'])} origins, {found['ms']} ms"
    )
    lines += found["missed"]
    return "\n".join(lines)


def _age(seconds: int) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def do_learner(options: argparse.Namespace) -> int:
    from gateway import cli_learner

    return cli_learner.do_learner(options)


def add_routing_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    def command(name: str, do: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.set_defaults(do=do)
        return sub

    sub = command("route", do_route, "announce and find outcomes, until SIGTERM")
    sub.add_argument("--status", action="store_true", help="what the running process is doing")
    sub.add_argument("--audit", action="store_true", help="who asked for what, newest first")
    sub.add_argument("--rows", type=int, default=100, metavar="N", help="of --audit (default 100)")
    sub.add_argument("--child", action="store_true", help=argparse.SUPPRESS)

    sub = command("query", do_query, "find outcomes like a given one, here and at peers")
    sub.add_argument(
        "--like", required=True, metavar="OUTCOME|VECTOR", help="outcome id, vector in hex, or file"
    )
    sub.add_argument("-k", type=int, default=10, help="for each label (default 10)")
    sub.add_argument("--label", default="", help="only this one (default: the likely ones)")
    sub.add_argument("--domain", default="", help="name or id, when there are several")
    sub.add_argument("--deadline", type=int, default=0, metavar="MS", help="answer by then")
    sub.add_argument("--here", action="store_true", help="ask no other gateway")

    sub = command("similar", do_similar, "agents elsewhere that have lived through the same")
    sub.add_argument("agent", help="id of an agent of this gateway")
    sub.add_argument("-k", type=int, default=10, help="how many (default 10)")
    sub.add_argument("--deadline", type=int, default=0, metavar="MS", help="answer by then")

    command("learner", do_learner, "what was learnt for devices here, from whom, how it does")
