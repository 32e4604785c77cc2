"""Ten thousand records of backlog: all arrive, and what is sensed meanwhile goes first."""

import pytest
from harness.machine import KINDS

pytestmark = pytest.mark.full
BACKLOG, LIVE = 10_000, 60


@pytest.mark.parametrize("kind", KINDS)
def test_a_backlog_drains_behind_live_data(make_world, kind):
    """Nine of ten records are feedback, which is short: 10,000 outcomes do not fit 2 MB."""
    world = make_world(
        journal={"segment_bytes": 16384, "max_segments": 120, "batch": 8},
        delivery={"window": 8, "custody": 32},
    )
    world.box.cut()
    knobs = {"job": "hil_cuts", "windows": BACKLOG, "batch": 64, "short": 1}
    world.machine.start(options=knobs)
    assert world.machine.wait(300) == 0, world.story()
    world.box.mend()
    world.go(windows=LIVE, gap=100)
    world.finish(900)
    verdict = world.judge("backlog")
    assert verdict.committed == verdict.delivered == BACKLOG + LIVE
    order = [record.outcome for record in world.bench.rows()]
    live = [record.outcome for record in world.ledger.records if record.seq > BACKLOG]
    places = sorted(order.index(outcome) for outcome in live)
    # Sensing lasts a few seconds, the backlog much longer.
    assert places[-1] < BACKLOG // 2, places
