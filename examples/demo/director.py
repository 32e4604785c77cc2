"""Runs the demo: starts everything, kills three processes under load, waits for the end.

A kill happens when four things hold, so that it proves something:

    calm    every process runs, every site is linked, and the last kill's victims have all
            reached the database: kills are alone
    flow    records were committed and records arrived within the last second and a half
    flight  at least one committed record is not in the database at this very moment
    held    (not when the gateway itself is killed) the gateway was paused for a moment, so
            that the broker holds records which it has acknowledged and the gateway has not

What is in flight is counted from the ledgers and the database in the instant before the
kill, not from what any process says about itself. The kill is "live" when that is not
zero; it has "recovered" when every one of those records is in the database.
"""

import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from examples.demo.processes import Process, wait_until
from examples.demo.routing import Routing
from examples.demo.show import Progress
from examples.demo.watch import Member, Watch
from examples.demo.world import DEVICE, Hub, World

STARTUP_S = 40.0
SETTLE_S = 0.4  # for what already left a dead process to reach the disk
QUIET_S = 20.0  # nothing moves for so long: what has not arrived will not
OVER_S = 3.0  # the same, once every site says that it has nothing left to send
ENOUGH = 4  # in flight; a kill waits a little for so many
MEET_S = 8.0


class DemoError(Exception):
    """The demo could not be run (exit 3), as opposed to: it failed (exit 1)."""


class Director:
    """One run. `go` returns when all is delivered, or nothing moves any more."""

    def __init__(
        self,
        world: World,
        progress: Progress,
        kills: list[tuple[str, float]],
        routing: "Routing | None" = None,
    ) -> None:
        self.world = world
        self.routing = routing
        self.progress = progress
        self.watch = Watch(world.members, [hub.database for hub in world.hubs])
        self.planned = list(kills)
        self.kills: list[dict[str, Any]] = []
        self.total = sum(len(m.windows) for m in world.members)
        self.drained = False
        self._down: list[tuple[float, dict[str, Any], Process]] = []

    def go(self) -> None:
        self._start()
        deadline = self.world.seconds * 3 + 60
        while True:
            self._tick()
            if self._ended():
                break
            if self.watch.now() > deadline:
                self.progress.say("Time is up; what has not arrived by now counts as lost")
                break
            if self.planned and self._share() >= self.planned[0][1] and self._calm():
                self._kill(self.planned.pop(0)[0])
            time.sleep(0.02)
        for name, _ in self.planned:
            self._note(name, None, set())

    # -- start and end ----------------------------------------------------------------

    def _start(self) -> None:
        world, say = self.world, self.progress.say
        for hub in world.hubs:
            hub.broker.start()
        for hub in world.hubs:
            self._need(hub.broker, hub.broker_ready, "accepts no connections")
            hub.gateway.start()
        for hub in world.hubs:
            self._need(hub.gateway, hub.gateway_ready, "is not ready")
        if self.routing is not None:
            self.routing.start()
        pairs = "Broker and gateway are" if len(world.hubs) == 1 else "Brokers and gateways are"
        ports = ", ".join(str(hub.port) for hub in world.hubs)
        say(f"{pairs} up on port {ports}; starting {len(world.members)} sites")
        for member in world.members:
            member.process.start()
        for member in world.members:
            self._need(member.process, partial(self._is_linked, member), "has no session")
        self.watch.restart_clock()
        self.watch.look()
        self._start_ms = time.time_ns() // 1_000_000 + 200
        for member in world.members:
            member.process.tell(self._cue(member))
        say(
            f"Every site is linked. Replaying {self.total:,} windows "
            f"at {world.speed:.1f} times real time"
        )

    def _cue(self, member: Member) -> str:
        """Sites begin one after the other within one batch: they are not synchronised."""
        phase = self.world.members.index(member) / len(self.world.members)
        late_ms = 1000 * self.world.interval_s * DEVICE["journal"]["batch"] * phase
        return f"go {self._start_ms + int(late_ms)}"

    def _is_linked(self, member: Member) -> bool:
        member.look()
        return bool(member.said.get("link"))

    def _need(self, process: Process, ready: Callable[[], bool], complaint: str) -> None:
        wait_until(lambda: ready() or not process.running(), STARTUP_S)
        if not process.running():
            raise DemoError(
                f"{process.name} ended with status {process.returncode()}:\n{process.tail()}"
            )
        if not ready():
            raise DemoError(
                f"{process.name} {complaint} after {STARTUP_S:.0f} s:\n{process.tail()}"
            )

    def _ended(self) -> bool:
        if self._down:
            return False
        watch = self.watch
        finished = all(m.finished() for m in self.world.members)
        if finished and not watch.in_flight():
            self.drained = True
            return True
        return watch.now() - watch.moved > (OVER_S if finished else QUIET_S)

    def _tick(self) -> None:
        watch = self.watch
        watch.look()
        self._restart_due()
        routers = self.routing.processes() if self.routing is not None else []
        for process in [*self.world.processes(), *routers]:
            if process.starts and not process.running() and not self._is_down(process):
                raise DemoError(
                    f"{process.name} ended by itself with status {process.returncode()}:\n"
                    f"{process.tail()}"
                )
        for kill in self.kills:
            if kill["recovered"] is None and not (kill["victims"] - watch.arrived.keys()):
                kill["recovered"] = watch.now()
        rate = watch.rates()[1]
        down = "".join(f"  [{kill['what']} is down]" for _, kill, _ in self._down)
        self.progress.step(
            len(watch.arrived),
            self.total,
            f"{len(watch.arrived):,} of {self.total:,} outcomes arrived  {rate:.0f}/s  "
            f"on the way {len(watch.in_flight())}{down}",
        )

    def _share(self) -> float:
        return len(self.watch.committed) / max(self.total, 1)

    # -- kills ------------------------------------------------------------------------

    def _calm(self) -> bool:
        watch = self.watch
        committed, arrived = watch.rates()
        return (
            not self._down
            and watch.linked() == len(self.world.members)
            and all(kill["recovered"] is not None for kill in self.kills)
            and len(watch.in_flight()) <= max(12, 1.2 * committed)
            and committed > 0
            and arrived > 0
        )

    def _victim(self, what: str) -> tuple[Process, int | None, Hub]:
        """Broker and gateway are those of the first group, the agent is from the middle."""
        first = self.world.hubs[0]
        if what == "broker":
            return first.broker, None, first
        if what == "gateway":
            return first.gateway, None, first
        member = self.world.members[len(self.world.members) // 2]
        return member.process, member.number, self.world.hub_of(member.number)

    def _kill(self, what: str) -> None:
        process, site, hub = self._victim(what)
        sites = hub.sites() if site is None else {site}
        watch, world = self.watch, self.world
        rates = watch.rates()
        member = next((m for m in world.members if m.number == site), None)
        held = what != "gateway"
        if held:
            # A healthy gateway leaves a broker nothing to lose, and a site nothing unanswered.
            hub.gateway.signal(signal.SIGSTOP)
            until = watch.now() + world.pause_s
            while watch.now() < until:
                self._tick()
                time.sleep(0.01)
        met = self._meet(process)
        patience = watch.now() + 3.0
        while True:
            watch.look()
            flying = watch.in_flight(sites)
            in_ram = int(member.said.get("read", 0)) - len(member.lines) if member else ENOUGH
            if len(flying) >= ENOUGH and in_ram >= ENOUGH:
                break
            if (flying or in_ram) and watch.now() > patience - 1.5:
                break
            if met is not None or watch.now() > patience:
                break
            time.sleep(0.004)
        process.kill()
        at = watch.now()
        kill = self._note(what, at, flying)
        if held:
            hub.gateway.signal(signal.SIGCONT)
        time.sleep(SETTLE_S)
        watch.look()
        unsaved = flying - watch.arrived.keys()
        kill["rates"] = rates
        kill["met"] = met
        kill["paused_s"] = world.pause_s if held else 0.0
        kill["again"] = len(unsaved)
        kill["acknowledged"] = len(flying & world.acknowledged_by_broker())
        if member is not None:
            kill["site"] = member.number
            kill["in_ram"] = max(in_ram, 0)
            member.said.clear()
        if what == "broker":
            for m in hub.members:
                m.said["link"] = False
        kill["live"] = (
            rates[0] > 0
            and rates[1] > 0
            and met is not False
            and bool(kill["victims"] or kill.get("in_ram") or met)
        )
        more = f", {kill['in_ram']} windows in RAM" if "in_ram" in kill else ""
        self.progress.say(
            f"SIGKILL {what if site is None else f'site {site}'} (process {kill['pid']}): "
            f"{len(kill['victims'])} records in flight{more}"
        )
        self._down.append((at + world.down_s, kill, process))

    def _note(self, what: str, at: float | None, victims: set[str]) -> dict[str, Any]:
        process, site, _ = self._victim(what)
        kill = {
            "what": what if site is None else f"site {site}",
            "at": at,
            "back": None,
            "recovered": None,
            "pid": process.pid,
            "victims": victims,
            "live": False,
            "rates": (0.0, 0.0),
        }
        self.kills.append(kill)
        return kill

    def _meet(self, process: Process) -> bool | None:
        """Have the process wait at the moment it announced, if it announced one.

        None: it announced none.  True: it is there.  False: it never got there.
        """
        moment = self.world.moment(process)
        if not moment.with_suffix(".known").exists():
            return None
        moment.with_suffix(".asked").touch()
        here = moment.with_suffix(".here")

        def there() -> bool:
            self._tick()
            return here.exists()

        return wait_until(there, MEET_S, 0.01)

    def _is_down(self, process: Process) -> bool:
        return any(down is process for _, _, down in self._down)

    def _restart_due(self) -> None:
        for entry in list(self._down):
            due, kill, process = entry
            if self.watch.now() >= due:
                for left in self.world.moment(process).parent.glob(f"{process.name}.*"):
                    left.unlink()
                process.start()
                for member in self.world.members:
                    if member.process is process:
                        process.tell(self._cue(member))
                kill["back"] = self.watch.now()
                self._down.remove(entry)
                self.progress.say(f"{kill['what']} restarted as process {process.pid}")
