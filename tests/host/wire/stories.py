"""What stories have in common: things are observed, and their ends looked up."""

import pytest

from wire.world import World

MINUTE_MS = 60_000


@pytest.fixture
def world(request):
    """A world with one device that is connected and idle. Parametrise with settings."""
    with World(7, 1, **getattr(request, "param", {})) as made:
        made.run(3000)
        yield made


def observe(world, device, labels, every_ms=100):
    for label in labels:
        device.observe(label)
        world.run(every_ms)


def order(world):
    """Labels in the order in which they reached the database."""
    return [row[0] for row in world.gateway._query("SELECT label FROM outcomes ORDER BY id")]


def lost(world, device):
    return sum(s.lost.count() for s in world.gateway.streams(device.agent))
