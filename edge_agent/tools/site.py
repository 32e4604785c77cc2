"""One installed agent: its configuration, domain, model, sensor and journal as a whole.

Paths in a configuration are taken relative to the file that names them, so a site's
folder can be moved and an agent can be started from anywhere.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_agent.agent import Agent
from edge_agent.config import Config
from edge_agent.cpython.board import linux_board
from edge_agent.cpython.model_litert import load_model
from edge_agent.cpython.notify import Notifier
from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain
from edge_agent.errors import ConfigError, RemoteError
from edge_agent.frame import DeviceKeys
from edge_agent.interfaces import Model

TICKETS_EVERY_S = 1.0
TICKETS_AT_ONCE = 4  # the agent's queue is short, and windows come first


def load_domain(path: "str | os.PathLike[str]") -> Domain:
    """A domain file, its signature checked. ConfigError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            error.strerror or str(error), f"domain {path}", "Give the file of your domain"
        )
    try:
        return Domain.load(data, HostCrypto())
    except RemoteError as error:
        raise ConfigError(
            f"no domain file, or a damaged one ({error})",
            f"domain {path}",
            "Use the file that the domain's owner signed",
        )


class Site:
    """A configuration file with what it names. `fields` is the file's JSON object."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.config = Config.load(path)
        self.fields: dict[str, Any] = json.loads(self.path.read_text())
        base = self.path.resolve().parent
        for name in ("domain", "model", "journal_path"):
            value = getattr(self.config, name)
            if value:
                setattr(self.config, name, str(base / value))
        source = self.config.sensor.get("path")
        if isinstance(source, str) and source != "-":
            self.config.sensor["path"] = str(base / source)
        if self.config.broker.tls is not None:
            for name in ("ca", "cert", "key"):
                value = getattr(self.config.broker.tls, name)
                if value:
                    setattr(self.config.broker.tls, name, str(base / value))
        self._domain: Domain | None = None

    @property
    def domain(self) -> Domain:
        if self._domain is None:
            self._domain = load_domain(self._named("domain"))
        return self._domain

    def model(self, runtime: str) -> Model:
        return load_model(self._named("model"), runtime, self.domain)

    def _named(self, field: str) -> str:
        value = getattr(self.config, field)
        if not value:
            raise ConfigError("missing", field, f"`edge-agent init --{field} FILE` writes it")
        return str(value)

    def keys(self) -> DeviceKeys:
        config = self.config
        return DeviceKeys(HostCrypto(), config.agent, config.key, config.generation)

    def save(self) -> None:
        """Write the fields back: complete and durable, or not at all; mode 0600."""
        temporary = self.path.with_name(self.path.name + ".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w") as file:
            json.dump(self.fields, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)


def initialise(
    path: str,
    model: "str | None",
    domain: "str | None",
    sensor: "str | None",
    journal: "str | None",
    runtime: str,
) -> dict[str, Any]:
    """Put this machine's paths into an enrolment file, after trying every part of it."""
    site = Site(path)
    for field, value in (("model", model), ("domain", domain)):
        if value is not None:
            site.fields[field] = os.path.abspath(value)
    if sensor is not None:
        try:
            section = json.loads(sensor)
        except ValueError as error:
            raise ConfigError(
                f"not JSON ({error})", "--sensor", 'Like {"kind": "csv", "path": "-"}'
            )
        source = section.get("path") if isinstance(section, dict) else None
        if isinstance(source, str) and source != "-":
            section["path"] = os.path.abspath(source)
        site.fields["sensor"] = section
    if journal is not None:
        site.fields.setdefault("journal", {})["path"] = os.path.abspath(journal)
    else:
        site.fields.setdefault("journal", {}).setdefault("path", site.path.stem + ".journal")
    Config.from_json(site.fields)
    before = site.path.read_bytes()
    site.save()
    try:
        site = Site(path)
        loaded = site.model(runtime)
        # The sensor is opened to see that it is there; nothing is read.
        board = linux_board(site.config, model=loaded, domain=site.domain)
        try:
            asyncio.run(board.sensor.close())
        finally:
            board.store.close()
    except BaseException:
        # What was there before still works; half a configuration does not.
        site.fields = json.loads(before)
        site.save()
        raise
    return {
        "agent": site.config.agent.hex(),
        "broker": f"{site.config.broker.host}:{site.config.broker.port}",
        "config": str(site.path),
        "domain": f"{site.domain.name} ({site.domain.id.hex()})",
        "journal": site.config.journal_path,
        "labels": len(site.domain.labels),
        "model": loaded.model_id.hex(),
        "sensor": str(site.config.sensor.get("kind")),
    }


def keys_and_domain(path: str) -> "tuple[DeviceKeys, Domain | None]":
    """For looking at frames: the keys, and the domain where the file names one."""
    site = Site(path)
    try:
        return site.keys(), site.domain
    except ConfigError:
        return site.keys(), None


async def run(
    path: str,
    stop: asyncio.Event,
    runtime: str,
    seconds: float,
    until_delivered: bool,
    report: "Callable[[str], None] | None",
) -> dict[str, Any]:
    """Run the agent until `stop` is set, time is up, or all is delivered; its status."""
    from edge_agent.tools import feedback

    site = Site(path)
    board = linux_board(site.config, model=site.model(runtime), domain=site.domain)
    folder = feedback.folder_of(site.config)
    taken: set[str] = set()

    def on_event(event: Any) -> None:
        if report is not None and event.level != "debug":
            report(f"{time.strftime('%H:%M:%S')} {event.level:<7} {event.name} {event.fields}")

    def on_committed(key: str, seq: int, frame: bytes) -> None:
        if key.startswith("feedback:"):
            name = key.partition(":")[2]
            (folder / name).unlink(missing_ok=True)
            feedback.sync_folder(folder)
            taken.discard(name)

    agent = Agent(board, site.config, site.domain, on_committed=on_committed, on_event=on_event)

    async def take_tickets() -> None:
        while True:
            for ticket in feedback.waiting(folder):
                if len(taken) >= TICKETS_AT_ONCE or agent.core.status()["queued"]:
                    break
                if ticket.name in taken:
                    continue
                try:
                    about, result, label = feedback.read(ticket, site.domain)
                except ConfigError as error:
                    ticket.rename(ticket.with_suffix(".bad"))
                    if report is not None:
                        report(f"feedback set aside: {error}")
                    continue
                taken.add(ticket.name)
                agent.feedback(about, result, label, key="feedback:" + ticket.name)
            await asyncio.sleep(TICKETS_EVERY_S)

    async def stop_when_told() -> None:
        if seconds:
            try:
                await asyncio.wait_for(stop.wait(), seconds)
            except TimeoutError:
                pass
        else:
            await stop.wait()
        agent.stop()

    notifier = Notifier()
    chores = (take_tickets(), stop_when_told(), notifier.beats())
    helpers = [asyncio.create_task(chore) for chore in chores]
    notifier.ready()
    try:
        await agent.run(drain=until_delivered)
    finally:
        notifier.stopping()
        for helper in helpers:
            helper.cancel()
        board.store.close()
    return agent.status()
