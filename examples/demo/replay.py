"""The windows of one person, by the project's own replay sensor, as a list.

The demo hands them out itself (site.py): at its own pace, and from the middle after a kill.
"""

import asyncio
from pathlib import Path

from edge_agent.cpython.sensors import open_sensor
from edge_agent.cpython.sensors.replay import label_of
from edge_agent.domain import Domain
from edge_agent.interfaces import Window


def windows(
    path: Path, domain: Domain, person: int, limit: int = 0, without: "int | None" = None
) -> list[Window]:
    """All windows of one person in order, or the first `limit`. Keys are unique.

    without: index of a label whose windows are left out.
    """
    fields = {"kind": "replay", "path": str(path), "person": person, "speed": 0}
    sensor = open_sensor(fields, domain)

    async def read_all() -> list[Window]:
        out = []
        while (window := await sensor.read()) is not None:
            if label_of(window.key) != without:
                out.append(window)
        return out[: limit or None]

    return asyncio.run(read_all())


def labels(
    path: Path, domain: Domain, person: int, limit: int = 0, without: "int | None" = None
) -> dict[str, int]:
    """{key of each window: index of the label that is true}."""
    return {w.key: label_of(w.key) for w in windows(path, domain, person, limit, without)}
