"""Run an example that is nothing but files: `python -m examples.run examples/health`.

The folder's `example.json` names a domain, its codebook, gateways, devices and a question:

    {"domain": "health.domain", "codebook": "health.codebook",
     "gateways": ["north", "south"],
     "devices": {"clinic-a": {"gateway": "north", "model": "health.tflite",
                              "sensor": {"from": "health.sensor.json", "path": "clinic-a.csv"}}},
     "ask": {"gateway": "south", "label": "malignant", "k": 3}}

Names are relative to the folder. "sensor" is the section of an agent's configuration; "from"
takes the fields that it does not have from a file. "configuration" adds sections of a device's
configuration, "routing" of the gateways' routing section: what may be announced in a day is let
out evenly over it, and here a day's outcomes come in seconds, so "per_day" is large.

What runs are the commands of README.md and docs/routing.md, no more: every gateway with a
broker and routing of its own, a folder for pointers, every device until its recording has ended
and all is delivered. Then each gateway's count is compared with its devices' own, and the
last outcome at the gateway that asks is taken as the case: what do others know that is like
it? Exit status 1 when something was lost or nobody answered.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from edge_agent.cli import main as agent_command
from edge_agent.errors import ConfigError, EdgeError
from examples.demo.processes import Process, free_port, wait_until
from gateway.cli import main as gateway_command
from gateway.cli_routing import answer_text, call
from gateway.domain_file import read_json
from gateway.files import write_private

GATEWAY = [sys.executable, "-m", "gateway.cli"]
AGENT = [sys.executable, "-m", "edge_agent.cli"]
ROOT = Path(__file__).resolve().parents[1]
UP_S, DELIVER_S, SETTLE_S = 60.0, 240.0, 120.0


class Example:
    """What `example.json` in a folder says. ConfigError names a wrong field."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        file = self.folder / "example.json"
        found = read_json(file)
        try:
            self.domain, self.codebook = (self._file(found[n]) for n in ("domain", "codebook"))
            self.gateways: list[str] = list(found["gateways"])
            self.devices: dict[str, dict[str, Any]] = found["devices"]
            self.ask: dict[str, Any] = found["ask"]
            self.routing: dict[str, Any] = found.get("routing", {})
            homes = [device["gateway"] for device in self.devices.values()]
            for device in self.devices.values():
                device["model"] = self._file(device["model"])
                device["sensor"] = self._sensor(device["sensor"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{error!r}", str(file), "See examples/run.py")
        if not set(homes) | {self.ask.get("gateway")} <= set(self.gateways):
            raise ConfigError("names a gateway that is not listed", str(file), "List all gateways")

    def _file(self, name: str) -> str:
        path = self.folder / name
        if not path.is_file():
            raise ConfigError("no such file", str(path), "Names are relative to example.json")
        return str(path)

    def _sensor(self, section: dict[str, Any]) -> dict[str, Any]:
        section = dict(section)
        if "from" in section:
            section = {**read_json(Path(self._file(section.pop("from")))), **section}
        return {**section, "path": self._file(section["path"])}


def command(main: "Callable[[list[str]], int]", *arguments: str) -> Any:
    """What a command of ours prints with --json, without the cost of another process."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = main([*arguments, "--json"])
    if code:
        raise EdgeError(errors.getvalue().strip(), " ".join(arguments))
    return json.loads(out.getvalue()) if out.getvalue().strip() else None


at_gateway = partial(command, gateway_command)
at_agent = partial(command, agent_command)


def set_up(example: Example, work: Path) -> None:
    """Gateways that know each other, and devices enrolled at them."""
    (work / "pointers").mkdir()
    ports: dict[str, int] = {}
    for number, name in enumerate(example.gateways):
        ports[name] = free_port()
        folder = str(work / name)
        command(
            gateway_command, "init", folder, "--domain", example.domain, "--port", str(free_port())
        )
        endpoint = f"127.0.0.1:{ports[name]}"
        how = ["--join", str(work / "join")] if number else ["example"]
        at_gateway("-C", folder, "network", "init", *how, "--endpoint", endpoint)
        if not number:
            at_gateway("-C", folder, "network", "share", "--out", str(work / "join"))
        card = str(work / f"{name}.card")
        at_gateway("-C", folder, "network", "card", "--name", name, "--out", card)
        books = work / name / "codebooks"
        books.mkdir(exist_ok=True)
        (books / "example.codebook").write_bytes(Path(example.codebook).read_bytes())
        config = work / name / "gateway.json"
        routing = {
            **example.routing,
            "port": ports[name],
            "api_port": free_port(),
            "routes": [{"kind": "folder", "path": "../pointers"}],
        }
        fields = {**json.loads(config.read_text()), "routing": routing}
        write_private(config, json.dumps(fields, indent=1) + "\n")
    for name in example.gateways:
        for other in example.gateways:
            if other != name:
                card = str(work / f"{other}.card")
                at_gateway("-C", str(work / name), "network", "add", card)
    for name, device in example.devices.items():
        config = work / f"{name}.json"
        command(
            gateway_command,
            "-C",
            str(work / device["gateway"]),
            "enrol",
            name,
            "--out",
            str(config),
        )
        if "configuration" in device:
            fields = {**json.loads(config.read_text()), **device["configuration"]}
            write_private(config, json.dumps(fields, indent=1) + "\n")
        at_agent(
            "init", "--config", str(config), "--model", device["model"],
            "--domain", example.domain, "--sensor", json.dumps(device["sensor"]),
        )  # fmt: skip


@contextlib.contextmanager
def gateways(example: Example, work: Path) -> Iterator[None]:
    """All of them, with their brokers and routing, until the block ends."""
    running = []
    try:
        for name in example.gateways:
            arguments = ["-C", str(work / name), "run", "--broker", "--route"]
            one = Process(name, [*GATEWAY, *arguments], work / f"{name}.log", {})
            one.start()
            running.append(one)
        for one in running:
            folder = work / one.name
            if not wait_until(partial(status, folder), UP_S, 0.2):
                raise EdgeError("did not start:\n" + one.tail(), one.name)
        yield
    finally:
        for one in running:
            one.stop(10.0)


def status(folder: Path) -> dict[str, Any]:
    """What the routing process says; {} while it is not there."""
    try:
        return call(folder, "GET", "/status", None, 5.0)
    except EdgeError:
        return {}


def settled(folder: Path, rows: int) -> bool:
    """Everything delivered was looked at, and what is worth it is announced."""
    found = status(folder)
    if not found or found["feed"]["row"] < rows:
        return False
    return all(d["settled"] for d in found["domains"].values()) and not any(
        route["pending"] for route in found["routes"]
    )


def deliver(example: Example, work: Path) -> dict[str, int]:
    """Run every device to the end of its recording; outcomes by device."""
    running = {}
    for name in example.devices:
        arguments = ["run", "--config", str(work / f"{name}.json"), "--until-delivered", "--json"]
        with (work / f"{name}.log").open("w") as log:
            running[name] = subprocess.Popen(
                [*AGENT, *arguments, "--quiet"], stdout=subprocess.PIPE, stderr=log, text=True
            )
    made = {}
    deadline = time.monotonic() + DELIVER_S
    try:
        for name, one in running.items():
            output, _ = one.communicate(timeout=max(1.0, deadline - time.monotonic()))
            if one.returncode:
                raise EdgeError((work / f"{name}.log").read_text()[-500:], name)
            made[name] = json.loads(output)["counters"]["outcomes"]
    except subprocess.TimeoutExpired:
        raise EdgeError("did not deliver in time", name)
    finally:
        for one in running.values():
            if one.poll() is None:
                one.kill()
                one.wait()
    return made


def run(example: Example, work: Path) -> bool:
    """Whether all arrived and somebody else answered."""
    began = time.monotonic()
    set_up(example, work)
    good = True
    with gateways(example, work):
        made = deliver(example, work)
        newest = {}
        for name in example.gateways:
            mine = [d for d, at in example.devices.items() if at["gateway"] == name]
            out = work / f"{name}.jsonl"
            at_gateway("-C", str(work / name), "export", "--out", str(out))
            rows = [json.loads(line) for line in out.read_text().splitlines()]
            newest[name] = max(rows, key=lambda row: row["seq"])["outcome"] if rows else ""
            for device in mine:
                said = [row["label_name"] for row in rows if row["device"] == device]
                counts = ", ".join(f"{label} {n}" for label, n in Counter(said).most_common())
                print(f"{device:12} at {name:8} {len(said):5} outcomes: {counts}")
                if len(said) != made[device]:
                    print(f"{device}: made {made[device]}, {len(said)} arrived")
                    good = False
            if not wait_until(partial(settled, work / name, len(rows)), SETTLE_S, 0.2):
                raise EdgeError("did not announce in time", name)
        asking = example.ask["gateway"]
        body = {"like": newest[asking], "deadline_ms": 5000, "k": example.ask.get("k", 3)}
        if "label" in example.ask:
            body["label"] = example.ask["label"]
        found = call(work / asking, "POST", "/query", body, 15.0)
        print(f"\nWhat is known of cases like the last one at {asking}?")
        print(answer_text(found))
        hits = [hit for part in found["labels"] for hit in part["hits"]]
        good = good and any(hit["origin"] != "here" for hit in hits)
    state = "none lost" if good else "and this should not be so"
    print(f"\n{sum(made.values())} outcomes, {state}, {time.monotonic() - began:.0f} s")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="with example.json")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there, and leave it")
    options = parser.parse_args()
    try:
        example = Example(options.folder)
        if options.keep:
            options.keep.mkdir(parents=True)
            return 0 if run(example, options.keep.resolve()) else 1
        with tempfile.TemporaryDirectory(prefix="example-") as work:
            return 0 if run(example, Path(work)) else 1
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (EdgeError, OSError) as error:
        print(error, file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
