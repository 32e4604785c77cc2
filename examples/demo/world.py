"""The folder of one demo, and the processes in it.

gateway/         what `edge-gateway init` makes, with the database
site-4/          device.json and journal of the site that replays person 4
site-4.ledger    its ledger            site-4.acknowledged   what the broker took over
log/             stderr of every process
moment/          see `World.moment`
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
QUICK_WINDOWS = 150

# Times that suit a replay which is many times faster than life. Everything else is default.
DEVICE: dict[str, Any] = {
    "journal": {"batch": 8, "batch_ms": 1000},
    "delivery": {"pace_per_s": 60, "ack_timeout_s": 2},
}


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
        self.port = free_port()
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
        self.members = self._enrol(domain_file, sites)
        longest = max(len(m.windows) for m in self.members)
        self.interval_s = seconds / longest
        self.speed = self.hop_s / self.interval_s
        self._processes()

    # -- setting up -------------------------------------------------------------------

    def _command(self, *arguments: str) -> Any:
        """`edge-gateway ... --json`, without the cost of another process."""
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            code = gateway_command(["-C", str(self.folder / "gateway"), *arguments, "--json"])
        if code:
            raise ConfigError(f"edge-gateway {arguments[0]} ended with status {code}")
        return json.loads(text.getvalue())

    def _enrol(self, domain_file: Path, sites: int) -> list[Member]:
        """A gateway, and a device.json for every site."""
        folder = self.folder
        gateway = folder / "gateway"
        self._command("init", str(gateway), "--domain", str(domain_file), "--port", str(self.port))
        self.database = Database(gateway / "gateway.db")
        members = []
        for person in range(FIRST_PERSON, FIRST_PERSON + sites):
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
            agent = self._command("enrol", f"site-{person}", *arguments)["agent"]
            config = Config.load(str(device))
            self.keyring.add(DeviceKeys(self.crypto, config.agent, config.key, config.generation))
            windows = replay.labels(self.replay, self.domain, person, self.limit)
            ledger = folder / f"site-{person}.ledger"
            members.append(Member(person, agent, windows, ledger))
        return members

    def _processes(self) -> None:
        folder = self.folder
        here = str(ROOT)
        env = {
            "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]).rstrip(":"),
            "PYTHONUNBUFFERED": "1",
            "DEMO_MOMENTS": str(folder / "moment"),
            # Nine processes share few cores: one thread each.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        gateway = str(folder / "gateway")
        log = folder / "log"
        self.broker = Process(
            "broker",
            [sys.executable, "-m", "gateway.cli", "-C", gateway, "broker"],
            log / "broker",
            env,
        )
        self.gateway = Process(
            "gateway",
            [*self.gateway_cmd, "-C", gateway, "run"],
            log / "gateway",
            {**env, "DEMO_MOMENT": "gateway"},
        )
        for member in self.members:
            name = f"site-{member.number}"
            command = [
                *self.agent_cmd,
                *("--site", str(member.number), "--folder", str(folder)),
                *("--config", str(folder / name / "device.json"), "--replay", str(self.replay)),
                *("--limit", str(self.limit), "--interval", repr(self.interval_s)),
            ]
            member.process = Process(
                name, command, log / name, {**env, "DEMO_MOMENT": name}, talk=True
            )

    def processes(self) -> list[Process]:
        return [self.broker, self.gateway, *(m.process for m in self.members)]

    def broker_ready(self) -> bool:
        return listening(self.port)

    def gateway_ready(self) -> bool:
        """It says so in its log; what it subscribes to is kept for it from then on."""
        return "connected to" in self.gateway.tail(50)

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
        """Ask everyone to end in order: sites, gateway, broker."""
        for member in self.members:
            member.process.signal(15)
        for member in self.members:
            member.process.reap(8.0)
        self.gateway.stop()
        self.broker.stop(2.0)

    def end(self) -> None:
        """Whatever happened: nothing of ours runs afterwards."""
        for process in self.processes():
            process.signal(18)  # SIGCONT: a paused process cannot end
            process.kill()
