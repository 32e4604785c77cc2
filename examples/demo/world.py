"""The folder of one demo, and the processes in it.

gateway/         what `edge-gateway init` makes, with the database; gateway-2/, gateway-3/
site-4/          device.json and journal of the site that replays person 4
site-4.ledger    its ledger            site-4.acknowledged   what the broker took over
newcomer-7/      device.json and journal of a device of the third act (loop.py)
log/             stderr of every process
moment/          see `World.moment`

Three gateways share the sites, each with a broker and a database of its own. One exercise,
`CASE`, is left out of every replay but that of the first site: the others never see it.
With fewer than three sites there is one gateway, and nothing is left out.
"""

import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from edge_agent.config import Config
from edge_agent.cpython.sensors.replay import ReplayFile
from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain
from edge_agent.errors import ConfigError
from edge_agent.frame import DeviceKeys, Keyring
from examples.demo import replay
from examples.demo.audit import Database
from examples.demo.processes import Process, free_port, listening
from examples.demo.watch import Member
from gateway.cli import main as gateway_command

ROOT = Path(__file__).resolve().parent.parent.parent
FIRST_PERSON = 4  # 1-3 trained the model
GATEWAYS = 3
CASE = "pendulum"  # what only the first site sees
QUICK_WINDOWS = 150

# Times that suit a replay which is many times faster than life. Everything else is default.
DEVICE: dict[str, Any] = {
    "journal": {"batch": 8, "batch_ms": 1000},
    "delivery": {"pace_per_s": 60, "ack_timeout_s": 2},
}


class Hub:
    """One gateway and its broker. number: from 1."""

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self.suffix = "" if number == 1 else f"-{number}"
        self.folder = folder / f"gateway{self.suffix}"
        self.port = free_port()
        self.members: list[Member] = []

    def command(self, *arguments: str) -> Any:
        """`edge-gateway ... --json`, without the cost of another process."""
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            code = gateway_command(["-C", str(self.folder), *arguments, "--json"])
        if code:
            raise ConfigError(f"edge-gateway {arguments[0]} ended with status {code}")
        return json.loads(text.getvalue())

    def set_up(self, domain: Path) -> None:
        self.command("init", str(self.folder), "--domain", str(domain), "--port", str(self.port))
        self.database = Database(self.folder / "gateway.db")

    def processes(self, log: Path, env: dict[str, str], gateway: list[str]) -> None:
        """gateway: the program that stands for `edge-gateway`."""
        own = [sys.executable, "-m", "gateway.cli"]
        place = ["-C", str(self.folder)]
        name = f"broker{self.suffix}"
        self.broker = Process(name, [*own, *place, "broker"], log / name, env)
        name = f"gateway{self.suffix}"
        self.gateway = Process(
            name, [*gateway, *place, "run"], log / name, {**env, "DEMO_MOMENT": name}
        )

    def broker_ready(self) -> bool:
        return listening(self.port)

    def gateway_ready(self) -> bool:
        """It says so in its log; what it subscribes to is kept for it from then on."""
        return "connected to" in self.gateway.tail(50)

    def sites(self) -> set[int]:
        return {member.number for member in self.members}


class World:
    """Everything that is made for one run.

    folder: exists and is empty.  seconds: how long the replay shall take.
    agent_cmd, gateway_cmd: programs to run instead of the real ones, for tests.
    """

    down_s = 2.0  # how long a killed process stays away
    pause_s = 1.5  # how long the gateway is paused before the broker is killed

    def __init__(
        self,
        folder: Path,
        sites: int,
        seconds: float,
        quick: bool,
        agent_cmd: list[str],
        gateway_cmd: list[str],
    ) -> None:
        self.started = time.time()
        self.folder = folder
        self.seconds = seconds
        self.python = sys.executable
        self.agent_cmd = agent_cmd or [sys.executable, "-m", "examples.demo.site"]
        self.gateway_cmd = gateway_cmd or [sys.executable, "-m", "gateway.cli"]
        for name in ("log", "moment"):
            (folder / name).mkdir()
        self.limit = QUICK_WINDOWS if quick else 0
        if quick:
            self.down_s = self.pause_s = 1.0
        self.model = ROOT / "models" / "watch_mlp_int8.tflite"
        domain_file = ROOT / "models" / "watch.domain"
        self.replay = ROOT / "models" / "data" / "watch_replay.bin"
        for path in (self.model, domain_file, self.replay):
            if not path.is_file():
                raise ConfigError("is missing", str(path), "Check the clone out again")
        self.crypto = HostCrypto()
        self.domain = Domain.load(domain_file.read_bytes(), self.crypto)
        self.model_id = self.crypto.sha256(self.model.read_bytes())[:8]
        space = self.domain.features
        self.hop_s = space.hop / ReplayFile(self.replay).rate_hz
        self.raw_bytes = space.window * space.axes * 2
        self.new_bytes = space.hop * space.axes * 2
        self.keyring = Keyring()
        count = GATEWAYS if sites >= GATEWAYS else 1
        self.hubs = [Hub(folder, number) for number in range(1, count + 1)]
        self.case = self.domain.labels.index(CASE) if count > 1 else None
        for hub in self.hubs:
            hub.set_up(domain_file)
        self.members = self._enrol(domain_file, sites)
        longest = max(len(m.windows) for m in self.members)
        self.interval_s = seconds / longest
        self.speed = self.hop_s / self.interval_s
        self._processes()

    # -- setting up -------------------------------------------------------------------

    def _enrol(self, domain_file: Path, sites: int) -> list[Member]:
        """A device.json for every site, made by its gateway."""
        folder = self.folder
        members = []
        for index in range(sites):
            person = FIRST_PERSON + index
            hub = self.hubs[index * len(self.hubs) // sites]
            home = folder / f"site-{person}"
            home.mkdir()
            fields = {
                **DEVICE,
                "domain": str(domain_file),
                "model": str(self.model),
                "journal": {**DEVICE["journal"], "path": str(home / "journal")},
            }
            template = folder / "template.json"
            template.write_text(json.dumps(fields))
            device = home / "device.json"
            arguments = ("--template", str(template), "--out", str(device))
            agent = hub.command("enrol", f"site-{person}", *arguments)["agent"]
            config = Config.load(str(device))
            self.keyring.add(DeviceKeys(self.crypto, config.agent, config.key, config.generation))
            without = self.case if index else None
            windows = replay.labels(self.replay, self.domain, person, self.limit, without)
            ledger = folder / f"site-{person}.ledger"
            member = Member(person, agent, windows, ledger)
            members.append(member)
            hub.members.append(member)
        return members

    def _processes(self) -> None:
        folder = self.folder
        here = str(ROOT)
        env = self.env = {
            "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]).rstrip(":"),
            "PYTHONUNBUFFERED": "1",
            "DEMO_MOMENTS": str(folder / "moment"),
            # Many processes share few cores: one thread each.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        log = folder / "log"
        for hub in self.hubs:
            hub.processes(log, env, self.gateway_cmd)
        for member in self.members:
            name = f"site-{member.number}"
            command = [
                *self.agent_cmd,
                *("--site", str(member.number), "--folder", str(folder)),
                *("--config", str(folder / name / "device.json"), "--replay", str(self.replay)),
                *("--limit", str(self.limit), "--interval", repr(self.interval_s)),
            ]
            if self.case is not None and member is not self.members[0]:
                command += ["--without", str(self.case)]
            member.process = Process(
                name, command, log / name, {**env, "DEMO_MOMENT": name}, talk=True
            )

    def router(self, hub: Hub) -> Process:
        """`edge-gateway route` of that gateway, not started. Taking in outcomes comes first."""
        name = f"router{hub.suffix}"
        command = [sys.executable, "-m", "gateway.cli", "-C", str(hub.folder), "route"]
        return Process(name, command, self.folder / "log" / name, self.env, nice=5)

    def processes(self) -> list[Process]:
        found = [process for hub in self.hubs for process in (hub.broker, hub.gateway)]
        return found + [member.process for member in self.members]

    def hub_of(self, site: int) -> Hub:
        return next(hub for hub in self.hubs if site in hub.sites())

    def moment(self, process: Process) -> Path:
        """Where a test's program for this process announces a moment worth dying at.

        It makes `NAME.known` when it starts. Before a kill the director makes `NAME.asked`;
        at its moment the program makes `NAME.here` and waits there for the end.
        """
        return self.folder / "moment" / process.name

    # -- reading ----------------------------------------------------------------------

    def acknowledged_by_broker(self) -> set[str]:
        """Hashes of frames for which some site has had a PUBACK."""
        found: set[str] = set()
        for member in self.members:
            path = self.folder / f"site-{member.number}.acknowledged"
            if path.exists():
                found.update(path.read_text().split())
        return found

    def counters(self) -> dict[str, int]:
        """What the gateways counted, all together."""
        found: dict[str, int] = {}
        for hub in self.hubs:
            for name, count in hub.database.counters().items():
                found[name] = found.get(name, 0) + count
        return found

    def readings(self, member: Member) -> int:
        """Samples in the windows that this site has processed; overlaps count once."""
        space = self.domain.features
        recordings: dict[str, int] = {}
        for line in member.lines:
            recording = line.window.rpartition("/")[0]
            recordings[recording] = recordings.get(recording, 0) + 1
        return sum(space.window + (n - 1) * space.hop for n in recordings.values())

    # -- the end ----------------------------------------------------------------------

    def stop(self) -> None:
        """Ask everyone to end in order: sites, gateways, brokers."""
        for member in self.members:
            member.process.signal(15)
        for member in self.members:
            member.process.reap(8.0)
        for hub in self.hubs:
            hub.gateway.stop()
        for hub in self.hubs:
            hub.broker.stop(2.0)

    def end(self) -> None:
        """Whatever happened: nothing of ours runs afterwards."""
        for process in self.processes():
            process.signal(18)  # SIGCONT: a paused process cannot end
            process.kill()

    def close(self) -> None:
        for hub in self.hubs:
            hub.database.close()
