"""python -m examples.demo: the whole system on one machine, killed three times.

Exit 0: nothing lost, nothing twice, and every kill hit live traffic. 1: not so.
2: wrong usage. 3: the demo could not be run here.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from edge_agent.errors import EdgeError
from examples.demo import page, report, show
from examples.demo.director import DemoError, Director
from examples.demo.loop import Loop
from examples.demo.routing import Routing
from examples.demo.world import World

KILLS = (("broker", 0.1), ("agent", 0.4), ("gateway", 0.65))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description="Replay real sensor data at several sites, kill the broker, one agent and "
        "the gateway on the way, show that every outcome arrives exactly once, find what one "
        "site has seen from another gateway, and teach it to devices that do not know it.",
        epilog="exit status: 0 proven, 1 failed, 2 usage, 3 could not be run here",
    )
    add = parser.add_argument
    add("--sites", type=int, default=None, metavar="N", help="1 to 7 sites (default 7)")
    add(
        "--seconds",
        type=float,
        default=None,
        metavar="S",
        help="how long the replay takes (default 34)",
    )
    add("--keep", metavar="DIR", help="keep journals, ledgers, logs and the database there")
    add("--out", default=".", metavar="DIR", help="where the report goes (default: here)")
    add("--json", action="store_true", help="print the report as JSON instead of the table")
    add("--quick", action="store_true", help="three sites, few windows, about 45 seconds")
    add("--no-kills", action="store_true", help="kill nothing")
    add(
        "--route",
        choices=("dht", "folder"),
        help="how gateways find each other's pointers (default: dht where OpenDHT is installed)",
    )
    add(
        "--kills",
        metavar="LIST",
        default=None,
        help="which of broker,agent,gateway to kill (default: all, in this order)",
    )
    add("--agent-cmd", metavar="CMD", help="program that runs one site, for tests")
    add("--gateway-cmd", metavar="CMD", help="program that stands for edge-gateway, for tests")
    options = parser.parse_args(argv)
    if options.sites is None:
        options.sites = 3 if options.quick else 7
    if options.seconds is None:
        options.seconds = 18.0 if options.quick else 34.0
    if not 1 <= options.sites <= 7:
        parser.error("--sites: 1 to 7, one for each person that the model has never seen")
    if not 2 <= options.seconds <= 600:
        parser.error("--seconds: 2 to 600")
    names = [name for name, _ in KILLS]
    chosen = [] if options.no_kills else (options.kills or ",".join(names)).split(",")
    for name in chosen:
        if name not in names:
            parser.error(f"--kills: {name!r} is none of {', '.join(names)}")
    options.kills = [(name, share) for name, share in KILLS if name in chosen]
    if options.keep and Path(options.keep).exists() and any(Path(options.keep).iterdir()):
        parser.error(f"--keep: {options.keep} is not empty; name a new directory")
    if not Path(options.out).is_dir() or not os.access(options.out, os.W_OK):
        parser.error(f"--out: {options.out} is no directory that can be written to")
    return options


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One demo in `folder`; the report. Every process has ended when this returns."""
    progress = show.Progress()
    world = World(
        folder,
        options.sites,
        options.seconds,
        options.quick,
        shlex.split(options.agent_cmd or ""),
        shlex.split(options.gateway_cmd or ""),
    )
    routing = loop = None
    if len(world.hubs) > 1:
        routing = Routing(world, progress, bool(options.kills), options.route)
        loop = Loop(world, routing, progress)
    director = Director(world, progress, options.kills, routing)
    try:
        director.go()
        if routing is not None and loop is not None:
            routing.go(director.watch)
            director.watch.others = loop.agents()
            loop.go()
            loop.stop()
            routing.stop()
        progress.say("All quiet. Stopping every process, then comparing ledgers and database")
        world.stop()
        director.watch.look()
    finally:
        if loop is not None:
            loop.end()
        if routing is not None:
            routing.end()
        world.end()
        progress.close()
    used = {
        "sites": options.sites,
        "seconds": options.seconds,
        "quick": options.quick,
        "kills": [name for name, _ in options.kills],
        "agent_cmd": options.agent_cmd,
        "gateway_cmd": options.gateway_cmd,
    }
    try:
        return report.build(world, director, used, routing, loop)
    finally:
        world.close()


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.keep:
        folder = Path(options.keep)
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = Path(tempfile.mkdtemp(prefix="edge-demo-"))
    try:
        result = run(options, folder.resolve())
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except (DemoError, EdgeError, OSError) as error:
        print(f"The demo cannot run: {error}", file=sys.stderr)
        return 3
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    out = Path(options.out)
    _write(out / "demo-report.json", json.dumps(result, indent=1) + "\n")
    _write(out / "demo-report.html", page.render(result))
    print(json.dumps(result, indent=1) if options.json else show.table(result))
    print(f"\n{out / 'demo-report.html'}  {out / 'demo-report.json'}", file=sys.stderr)
    return int(result["exit"])


def _write(path: Path, text: str) -> None:
    """All or nothing: a report that is half written looks like a result."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    sys.exit(main())
