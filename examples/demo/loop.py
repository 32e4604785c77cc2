"""The third act: devices that were never taught an exercise learn it from another gateway.

New devices join the gateways that have never seen `CASE`. Their model cannot say it: its score
for that label is struck out (newcomer.py). They live through the other exercises first, and
somebody says how it turned out. Their gateways fetch what they lack from those that have it, refit
the last layer and put it into the devices' mailboxes, with a few outcomes of others.

Then each does windows that it has not been taught on, of all exercises. Every outcome that others
had a part in says beside the decision what the device would have concluded alone. So before and
after are of the same windows, and written down by the device itself.

One decision about `CASE` is explained: whose outcomes it came from.
"""

import json
import signal
import time
from functools import partial
from typing import Any

from edge_agent.errors import EdgeError
from examples.demo.processes import Process, wait_until
from examples.demo.routing import Routing
from examples.demo.show import Progress
from examples.demo.world import CASE, DEVICE, ROOT, Hub, World
from gateway.cli_routing import call

INTERVAL_S = 0.03
READY_S, LIVE_S, LEARN_S = 40.0, 40.0, 60.0
NEWCOMERS = 4


class Newcomer:
    """One new device, as the director sees it."""

    def __init__(self, world: World, hub: Hub, person: int) -> None:
        self.hub, self.person = hub, person
        name = f"newcomer-{person}"
        home = world.folder / name
        home.mkdir()
        fields = {
            **DEVICE,
            "domain": str(ROOT / "models" / "watch.domain"),
            "model": str(world.model),
            "journal": {**DEVICE["journal"], "batch_ms": 200, "path": str(home / "journal")},
            "peers": {},
        }
        template = home / "template.json"
        template.write_text(json.dumps(fields))
        device = home / "device.json"
        self.agent = hub.command("enrol", name, "--template", str(template), "--out", str(device))[
            "agent"
        ]
        self.out = world.folder / f"{name}.outcomes"
        command = [
            world.python, "-m", "examples.demo.newcomer", "--site", str(person),
            "--config", str(device), "--replay", str(world.replay), "--out", str(self.out),
            "--case", str(world.case), "--interval", str(INTERVAL_S),
            "--step", "4" if world.limit else "2",
        ]  # fmt: skip
        self.process = Process(name, command, world.folder / "log" / name, world.env, talk=True)
        self.said: dict[str, Any] = {}

    def look(self) -> dict[str, Any]:
        for message in self.process.messages():
            self.said.update(message)
        return self.said

    def linked(self) -> bool:
        return bool(self.look().get("link"))

    def through(self, phase: str) -> bool:
        """All windows of a phase are outcomes in the gateway's hands."""
        said = self.look()
        done = "told" in said and said["told"][phase] >= said["of"][phase]
        return bool(done and said["drained"])

    def lines(self) -> list[dict[str, Any]]:
        if not self.out.exists():
            return []
        return [json.loads(line) for line in self.out.read_text().splitlines()]


class Loop:
    """`go` is the act; `result` and `checks` are for the report."""

    def __init__(self, world: World, routing: Routing, progress: Progress) -> None:
        self.world, self.routing, self.progress = world, routing, progress
        people = [(hub, m.number) for hub in world.hubs[1:] for m in hub.members]
        self.devices = [Newcomer(world, hub, number) for hub, number in people[:NEWCOMERS]]
        self.seconds = 0.0
        self.tree: dict[str, Any] = {}
        self.learners: dict[str, dict[str, Any]] = {}
        self.late: list[str] = []

    def agents(self) -> set[str]:
        return {device.agent for device in self.devices}

    def go(self) -> None:
        began = time.monotonic()
        say = self.progress.say
        for device in self.devices:
            device.process.start()
        self._until("linked", [d.linked for d in self.devices], READY_S)
        say(f"{len(self.devices)} new devices, whose model cannot say {CASE}, live and are judged")
        self._phase("learn")
        self._until("taught", [self._all_taught], LEARN_S, 1.0)
        for device in self.devices:
            say(f"newcomer {device.person} has head {device.look().get('head')} in force")
        self._phase("try")
        for hub in self.world.hubs[1:]:
            name = self.routing.name(hub)
            self.learners[name] = self.routing.status(hub).get("learner", {})
        self._explain()
        self.seconds = time.monotonic() - began

    def _phase(self, name: str) -> None:
        for device in self.devices:
            device.process.tell(name)
        self._until(name, [partial(d.through, name) for d in self.devices], LIVE_S)

    def _until(self, what: str, conditions: list[Any], patience: float, every: float = 0.1) -> None:
        def all_met() -> bool:
            return all(condition() for condition in conditions)

        if not wait_until(all_met, patience, every):
            self.late.append(what)

    def _all_taught(self) -> bool:
        status = {
            hub: self.routing.status(hub).get("learner", {})
            for hub in {d.hub for d in self.devices}
        }
        return all(self._taught(device, status[device.hub]) for device in self.devices)

    def _taught(self, device: Newcomer, status: dict[str, Any]) -> bool:
        """A lesson with everything that was judged was held, and what came of it is in force."""
        said = device.look()
        beside = sum(d.hub is device.hub for d in self.devices)
        for group in status.get("groups", []):
            if device.agent not in group["devices"] or not group["heads"]:
                continue
            in_force = [head for head in group["heads"] if head["state"] == "in force"]
            enough = group["heads"][0]["judged"] >= beside * (said["of"]["learn"] - 4)
            return bool(enough and in_force and said.get("head") == in_force[0]["version"])
        return False

    def _explain(self) -> None:
        """The decision about CASE with the most behind it."""
        best: tuple[int, ...] = (-1,)
        chosen: tuple[Newcomer, str] | None = None
        for device in self.devices:
            for line in device.lines():
                right = line["truth"] == line["label"] == self.world.case
                rank = (right, len(line["parents"]), line["head"] is not None, line["confidence"])
                if line["phase"] == "try" and rank > best:
                    best, chosen = rank, (device, line["outcome"])
        if chosen is None:
            return
        device, outcome = chosen
        try:
            self.tree = call(device.hub.folder, "POST", "/explain", {"outcome": outcome}, 10.0)
            self.tree["asked at"] = self.routing.name(device.hub)
        except EdgeError as error:
            self.progress.say(f"not explained: {error}")

    # -- the end ----------------------------------------------------------------------

    def stop(self) -> None:
        for device in self.devices:
            device.process.signal(signal.SIGTERM)
        for device in self.devices:
            device.process.reap(5.0)

    def end(self) -> None:
        for device in self.devices:
            device.process.kill()

    def result(self) -> dict[str, Any]:
        devices = [self._device(device) for device in self.devices]
        return {
            "case": CASE,
            "seconds": self.seconds,
            "devices": devices,
            "gateways": [
                {
                    "gateway": name,
                    "fetched_bytes": status.get("budget", {}).get("spent today", 0),
                    "fetched": max((g["fetched"] for g in status.get("groups", [])), default=0),
                    "heads": [
                        {key: head[key] for key in ("version", "state", "why", "right", "judged")}
                        for group in status.get("groups", [])
                        for head in group["heads"]
                    ],
                }
                for name, status in self.learners.items()
            ],
            "tree": self.tree,
            "late": self.late,
        }

    def _device(self, device: Newcomer) -> dict[str, Any]:
        lines = [line for line in device.lines() if line["phase"] == "try"]
        case = [line for line in lines if line["truth"] == self.world.case]

        def share(rows: list[dict[str, Any]], what: str) -> float:
            return sum(bool(line[what] == line["truth"]) for line in rows) / max(len(rows), 1)

        depths: dict[int, int] = {}
        for line in lines:
            depths[line["depth"]] = depths.get(line["depth"], 0) + 1
        return {
            "person": device.person,
            "gateway": self.routing.name(device.hub),
            "windows": len(lines),
            "case_windows": len(case),
            "alone": share(lines, "alone"),
            "together": share(lines, "label"),
            "case_alone": share(case, "alone"),
            "case_together": share(case, "label"),
            "head": device.said.get("head"),
            "by_head": sum(line["head"] is not None for line in lines),
            "synthesised": {str(depth): count for depth, count in sorted(depths.items())},
            "boxes": device.said.get("boxes", 0),
            "box_bytes": device.said.get("box_bytes", 0),
        }

    def checks(self) -> list[dict[str, Any]]:
        """What must hold for exit 0."""
        devices = [self._device(device) for device in self.devices]
        known = [d["case_together"] for d in devices]
        alone = sum(d["alone"] for d in devices) / len(devices)
        together = sum(d["together"] for d in devices) / len(devices)
        tree = self.tree.get("gateways", 0)
        return [
            {
                "ok": all(d["windows"] and d["head"] is not None for d in devices),
                "text": "Every new device got a last layer from its gateway and uses it",
                "detail": f"heads {[d['head'] for d in devices]}"
                + (f"; too late: {', '.join(self.late)}" if self.late else ""),
            },
            {
                "ok": all(d["case_alone"] == 0 for d in devices) and min(known) > 0,
                "text": f"{CASE} spreads to devices whose model cannot say it",
                "detail": f"recall {', '.join(f'{share:.2f}' for share in known)}; alone 0",
            },
            {
                "ok": together > alone,
                "text": "Together they are right more often than each alone",
                "detail": f"{together * 100:.1f} % instead of {alone * 100:.1f} %, same windows",
            },
            {
                "ok": bool(self.tree),
                "text": "A decision can be traced to the outcomes it came from",
                "detail": f"{self.tree.get('outcomes', 0)} outcomes at {tree} gateways",
            },
        ]
