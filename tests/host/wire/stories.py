"""What stories have in common: things are observed, and their ends looked up."""

MINUTE_MS = 60_000


def observe(world, device, labels, every_ms=100):
    for label in labels:
        device.observe(label)
        world.run(every_ms)


def order(world):
    """Labels in the order in which they reached the database."""
    return [row[0] for row in world.gateway._query("SELECT label FROM outcomes ORDER BY id")]


def lost(world, device):
    return sum(s.lost.count() for s in world.gateway.streams(device.agent))
