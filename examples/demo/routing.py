"""The second act: gateways find each other's outcomes, and go on when one of them dies.

Every gateway runs `edge-gateway route` beside ingest, with an OpenDHT node in a process of
its own. They announce while the replay goes on. When everything is delivered, the third
gateway is asked about windows of the exercise that only the first site has seen. They come
from a person of the third gateway, who did that exercise but whose windows of it were left
out of the replay: as if the device saw the case for the first time now.

    1. all well         every hit must be from the first gateway, and be that exercise
    2. router killed    the second gateway's routing dies, with its node: a question about
                        everything is answered without it, and the answer says so
    3. node killed      the third gateway's own node dies: it must be back, and found again
    4. all back         the second gateway answers again

What a hit really was is read from the sites' ledgers, not from the answer.
"""

import importlib.util
import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from edge_agent.cpython.model_litert import load_model
from edge_agent.cpython.sensors.replay import label_of
from edge_agent.errors import EdgeError
from edge_agent.features import Features
from edge_agent.outcome import distil
from examples.demo import replay
from examples.demo.processes import Process, free_port, wait_until
from examples.demo.show import Progress
from examples.demo.watch import Watch
from examples.demo.world import CASE, ROOT, Hub, World
from gateway.cli_routing import call
from gateway.files import write_private

CODEBOOK = ROOT / "models" / "watch.codebook"
# The budget is let out evenly over a day, and here a day's outcomes come in half a minute.
ANNOUNCE = {"per_day": 1_000_000}
LEARNER = {"every_s": 2}  # seconds: what takes ten minutes elsewhere
NEAREST = 10
QUESTIONS = 3
DEADLINE_MS = 4000
ANNOUNCE_S = 30.0  # patience until every pointer is out
BACK_S = 20.0  # until a killed process has joined again


def usual_route() -> str:
    """A folder where the DHT engine has no wheel for this machine."""
    return "dht" if importlib.util.find_spec("opendht") is not None else "folder"


class Routing:
    """Sets the gateways' routing up, runs it, and asks."""

    def __init__(self, world: World, progress: Progress, kills: bool, route: str | None) -> None:
        self.world = world
        self.progress = progress
        self.kills = kills
        self.route = route or usual_route()
        self.routers: list[Process] = []
        self.questions: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.announced: list[dict[str, Any]] = []
        self._set_up()

    # -- setting up -------------------------------------------------------------------

    def _set_up(self) -> None:
        hubs = self.world.hubs
        folder = self.world.folder
        (folder / "pointers").mkdir()
        nodes = [free_port() for _ in hubs]
        seeds = [f"127.0.0.1:{port}" for port in nodes]
        share = folder / "network.join"
        hubs[0].command("network", "init", "demo")
        hubs[0].command("network", "share", "--out", str(share))
        for hub in hubs[1:]:
            hub.command("network", "init", "--join", str(share))
        share.unlink()
        cards = []
        for hub, node in zip(hubs, nodes, strict=True):
            port = free_port()
            card = folder / f"gateway-{hub.number}.card"
            name, endpoint = self.name(hub), f"127.0.0.1:{port}"
            hub.command(
                "network", "card", "--out", str(card), "--name", name, "--endpoint", endpoint
            )
            cards.append(card)
            route: dict[str, Any] = {"kind": "dht", "host": "127.0.0.1", "port": node}
            route["seeds"] = [seed for seed in seeds if not seed.endswith(f":{node}")]
            if self.route == "folder":
                route = {"kind": "folder", "path": str(folder / "pointers")}
            section = {"port": port, "api_port": 0, "routes": [route], "announce": ANNOUNCE}
            section["learner"] = LEARNER
            self._configure(hub, section)
            books = hub.folder / "codebooks"
            books.mkdir()
            (books / CODEBOOK.name).write_bytes(CODEBOOK.read_bytes())
        for hub in hubs:
            for number, card in enumerate(cards, 1):
                if number != hub.number:
                    hub.command("network", "add", str(card))
        for hub in hubs:
            self.routers.append(self.world.router(hub))

    @staticmethod
    def _configure(hub: Hub, section: dict[str, Any]) -> None:
        path = hub.folder / "gateway.json"
        fields = json.loads(path.read_text())
        write_private(path, json.dumps({**fields, "routing": section}, indent=2) + "\n")

    @staticmethod
    def name(hub: Hub) -> str:
        return f"gateway-{hub.number}"

    def processes(self) -> list[Process]:
        return self.routers

    def start(self) -> None:
        for router in self.routers:
            router.start()

    # -- asking -----------------------------------------------------------------------

    def status(self, hub: Hub) -> dict[str, Any]:
        """What the routing process says of itself; {} while it is away."""
        try:
            return call(hub.folder, "GET", "/status", None, 5.0)
        except EdgeError:
            return {}

    def _ready(self, hub: Hub, rows: int) -> bool:
        """Everything delivered was looked at, and what is worth it is announced."""
        found = self.status(hub)
        if not found or found["feed"]["row"] < rows:
            return False
        return all(d["settled"] for d in found["domains"].values()) and all(
            route["up"] and not route["pending"] for route in found["routes"]
        )

    def _ask(self, hub: Hub, **body: Any) -> dict[str, Any]:
        body.setdefault("deadline_ms", DEADLINE_MS)
        return call(hub.folder, "POST", "/query", body, 10.0)

    def _cases(self) -> list[tuple[str, list[int]]]:
        """(window, vector) of withheld windows of the last person, spread over them."""
        world = self.world
        model = load_model(str(world.model), domain=world.domain)
        features = Features(world.domain.features)
        person = world.members[-1].number
        windows = [
            w
            for w in replay.windows(world.replay, world.domain, person)
            if label_of(w.key) == world.case
        ]
        step = max(1, len(windows) // QUESTIONS)
        found = []
        for window in windows[::step][:QUESTIONS]:
            outcome = distil(
                model.run(features.apply(window.samples)), world.domain, model.model_id
            )
            vector = outcome.vector or b""
            found.append((window.key, [v - 256 if v > 127 else v for v in vector]))
        return found

    def go(self, watch: Watch) -> None:
        """The whole act. What it found is in `questions`, `events`, `announced`."""
        say, hubs = self.progress.say, self.world.hubs
        rows = [sum(row.agent in {m.agent for m in h.members} for row in watch.rows) for h in hubs]
        began = time.monotonic()
        for hub, count in zip(hubs, rows, strict=True):
            ready = wait_until(partial(self._ready, hub, count), ANNOUNCE_S, 0.2)
            status = self.status(hub)
            self.announced.append(self._counted(hub, status, count, ready))
        pointers = sum(one["pointers"] for one in self.announced)
        say(
            f"{pointers} pointers announced by {len(hubs)} gateways over {self.route}, "
            f"ready after {time.monotonic() - began:.1f} s; asking gateway {hubs[-1].number}"
        )
        truth = self._truth()
        cases = self._cases()
        asker, second = hubs[-1], hubs[1]
        for key, vector in cases:
            answer = self._ask(asker, like=vector, label=CASE, k=NEAREST)
            self._note("all well", key, answer, truth)
        if not self.kills:
            return
        router = self.routers[second.number - 1]
        self._kill(f"the routing process of {self.name(second)}", router.pid, router.kill)
        key, vector = cases[0]
        self._note("router killed", key, self._ask(asker, like=vector, k=NEAREST), truth)
        if self.route == "dht":
            self._kill_node(asker)
            answer = self._ask(asker, like=vector, label=CASE, k=NEAREST)
            self._note("node killed", key, answer, truth)
        router.start()
        back = time.monotonic()
        wait_until(lambda: bool(self.status(second)), BACK_S, 0.1)
        while True:
            answer = self._ask(asker, like=vector, k=NEAREST)
            took = time.monotonic() - back
            if answer["origins"].get(self.name(second)) == "answered" or took > BACK_S:
                break
            time.sleep(0.3)
        self.events[0]["back_s"] = took
        self._note("all back", key, answer, truth)

    def _kill_node(self, hub: Hub) -> None:
        before = self._node(hub)
        if not before:
            return
        self._kill(f"the DHT node of {self.name(hub)}", before, lambda: os.kill(before, 9))
        began = time.monotonic()
        wait_until(lambda: self._up(hub) and self._node(hub) != before, BACK_S, 0.1)
        self.events[-1]["back_s"] = time.monotonic() - began

    def _up(self, hub: Hub) -> bool:
        routes = self.status(hub).get("routes", [])
        return bool(routes) and all(route["up"] for route in routes)

    def _node(self, hub: Hub) -> int:
        """Process id of its DHT node; 0 while there is none."""
        for route in self.status(hub).get("routes", []):
            if route["route"] == "dht":
                return int(route["sidecar"]["pid"] or 0)
        return 0

    def _kill(self, what: str, pid: int, kill: Callable[[], Any]) -> None:
        kill()
        self.events.append({"what": what, "pid": pid, "back_s": None})
        self.progress.say(f"SIGKILL {what} (process {pid})")

    def _truth(self) -> dict[str, tuple[int, int]]:
        """{outcome id: (site, true label)} by the ledgers."""
        return {
            line.frame[:32]: (member.number, member.windows[line.window])
            for member in self.world.members
            for line in member.lines
        }

    def _counted(self, hub: Hub, status: dict[str, Any], rows: int, ready: bool) -> dict[str, Any]:
        domains = list(status.get("domains", {}).values())
        route = (status.get("routes") or [{}])[0]
        return {
            "gateway": self.name(hub),
            "sites": sorted(hub.sites()),
            "outcomes": rows,
            "pointers": sum(d["standing"] for d in domains),
            "policy": {k: v for d in domains for k, v in d["policy"].items()},
            "messages": route.get("messages", {}),
            "ready": ready,
        }

    def _note(
        self, when: str, window: str, answer: dict[str, Any], truth: dict[str, tuple[int, int]]
    ) -> None:
        labels = self.world.domain.labels
        hits = []
        for part in answer["labels"]:
            for hit in part["hits"]:
                site, label = truth.get(hit["outcome"], (0, -1))
                hits.append(
                    {
                        "label": part["label"],
                        "origin": hit["origin"],
                        "site": site,
                        "true": labels[label] if label >= 0 else "?",
                        "score": hit["score"],
                        "age_s": hit["age_s"],
                        "outcome": hit["outcome"],
                    }
                )
        names = ("missed", "origins", "lookups", "messages", "pointers", "fetched", "ms")
        self.questions.append(
            {"when": when, "window": window, "hits": hits, **{n: answer[n] for n in names}}
        )

    # -- the end ----------------------------------------------------------------------

    def stop(self) -> None:
        for router in self.routers:
            router.signal(signal.SIGTERM)
        for router in self.routers:
            router.reap(6.0)

    def end(self) -> None:
        """Whatever happened: nothing of ours runs afterwards."""
        for router in self.routers:
            router.kill()

    def result(self) -> dict[str, Any]:
        """For the report."""
        return {
            "route": self.route,
            "case": CASE,
            "seen_at": f"site {self.world.members[0].number}",
            "asked_at": self.name(self.world.hubs[-1]),
            "announced": self.announced,
            "questions": self.questions,
            "kills": self.events,
        }

    def checks(self) -> list[dict[str, Any]]:
        """What must hold for exit 0."""
        first = self.name(self.world.hubs[0])
        second = self.name(self.world.hubs[1])
        well = [q for q in self.questions if q["when"] == "all well"]
        hits = [hit for q in well for hit in q["hits"]]
        right = [h for h in hits if (h["origin"], h["true"]) == (first, CASE)]
        full = len(well) == QUESTIONS and all(len(q["hits"]) == NEAREST for q in well)
        found = [
            {
                "ok": full and len(right) == len(hits),
                "text": "A case seen at one site is found from another gateway",
                "detail": f"{len(right)} of {len(hits)} hits are {CASE} outcomes of {first}",
            }
        ]
        if not self.kills:
            return found
        down = self._asked("router killed")
        found.append(
            {
                "ok": down["origins"].get(first) == "answered"
                and down["origins"].get(second, "answered") != "answered"
                and bool(down["hits"]),
                "text": "A dead gateway costs its own answers only",
                "detail": "; ".join(down["missed"]),
            }
        )
        if self.route == "dht":
            took = self.events[1]["back_s"] if len(self.events) > 1 else BACK_S
            found.append(
                {
                    "ok": len(self._asked("node killed")["hits"]) == NEAREST and took < BACK_S,
                    "text": "A dead DHT node comes back and finds again",
                    "detail": f"after {took:.1f} s",
                }
            )
        back = self._asked("all back")["origins"].get(second, "not asked")
        found.append(
            {
                "ok": back == "answered",
                "text": "What came back is asked again",
                "detail": f"{second}: {back}",
            }
        )
        return found

    def _asked(self, when: str) -> dict[str, Any]:
        none = {"hits": [], "origins": {}, "missed": ["not asked"]}
        return next((q for q in self.questions if q["when"] == when), none)
