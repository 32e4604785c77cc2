"""Figures that tests leave for report.py: one JSON object a line, a file for each run."""

import json
import os
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "hil" / "results"
RUN = "HIL_RUN"  # names the run; workers of one run inherit it


def start() -> str:
    """The name of this run; a new one unless a process above has begun it."""
    name = os.environ.setdefault(RUN, time.strftime("%Y%m%d-%H%M%S-") + str(os.getpid()))
    FOLDER.mkdir(parents=True, exist_ok=True)
    return name


def record(**fields: Any) -> None:
    """Append a result; a line is small enough to be written whole beside other workers."""
    path = FOLDER / (start() + ".jsonl")
    with path.open("a") as file:
        file.write(json.dumps(fields, sort_keys=True) + "\n")


def runs() -> "list[Path]":
    return sorted(FOLDER.glob("*.jsonl"))


def load(path: Path) -> "list[dict[str, Any]]":
    return [json.loads(line) for line in path.read_text().splitlines()]
