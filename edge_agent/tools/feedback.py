"""Feedback that waits for the agent: one small file each, in a folder beside the journal.

`edge-agent feedback` leaves a ticket whether or not the agent runs, so that two processes
never write one journal. The agent takes tickets in order: journal first, sync, and only
then is the ticket removed. A power cut between the two sends the same feedback again,
which changes nothing: it says the same thing about the same outcome.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from edge_agent.config import Config
from edge_agent.domain import Domain
from edge_agent.errors import ConfigError, StoreError
from edge_agent.tools.site import Site

MAX_WAITING = 10000
MAX_TICKET = 1024


def folder_of(config: Config) -> Path:
    return Path(config.journal_path + ".feedback")


def numbers(domain: Domain, result: str, label: str) -> "tuple[int, int]":
    """Their numbers in the domain; ConfigError naming those it has."""
    found = []
    for what, word, words in (("result", result, domain.results), ("label", label, domain.labels)):
        if word not in words:
            raise ConfigError(
                f"{word!r} is no {what} of this domain", "domain", "It has: " + ", ".join(words)
            )
        found.append(words.index(word))
    return found[0], found[1]


def put(path: str, outcome: str, result: str, label: str) -> dict[str, Any]:
    """Leave a ticket for the agent of configuration `path`; what it says.

    result: "confirmed" or "corrected".  label: what was true.
    """
    try:
        outcome_id = bytes.fromhex(outcome)
    except ValueError:
        outcome_id = b""
    if len(outcome_id) != 16:
        raise ConfigError(
            f"{outcome[:40]!r} is no outcome id", "outcome", "32 hexadecimal digits are wanted"
        )
    site = Site(path)
    numbers(site.domain, result, label)
    ticket = {"about": outcome_id.hex(), "result": result, "label": label}
    folder = folder_of(site.config)
    name = f"{time.time_ns():020d}.json"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if len(os.listdir(folder)) >= MAX_WAITING:
            raise StoreError(
                f"{MAX_WAITING} tickets are waiting already", str(folder), "Start the agent"
            )
        temporary = folder / ("." + name)
        with open(temporary, "x") as file:
            json.dump(ticket, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, folder / name)
        sync_folder(folder)
    except OSError as error:
        raise StoreError(
            error.strerror or str(error), str(folder), "Check space and rights", error.errno or 0
        )
    return {"ticket": name, **ticket}


def waiting(folder: Path) -> "list[Path]":
    """Tickets, oldest first."""
    try:
        return sorted(p for p in folder.iterdir() if p.suffix == ".json" and p.name[0] != ".")
    except FileNotFoundError:
        return []


def read(ticket: Path, domain: Domain) -> "tuple[bytes, int, int]":
    """(outcome id, result, label) of a ticket; ConfigError when it is damaged."""
    try:
        if ticket.stat().st_size > MAX_TICKET:
            raise ValueError("too long")
        content = json.loads(ticket.read_text())
        about = bytes.fromhex(content["about"])
        if len(about) != 16:
            raise ValueError("outcome id")
        return about, *numbers(domain, content["result"], content["label"])
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise ConfigError(f"damaged ticket ({error})", str(ticket), "Remove it")


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
