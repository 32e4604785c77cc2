"""The tests on machines use the harness here, and brokers and gateways of the host tests."""

import os
import random
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
for folder in (HERE.parent / "tests" / "host", HERE.parent, HERE):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from harness import machine, results  # noqa: E402
from harness.bench import Bench  # noqa: E402
from harness.linkbox import LinkBox  # noqa: E402
from harness.world import World  # noqa: E402

TIERS = {
    "fast": "in `make test`",
    "full": "in `make hil` besides",
    "soak": "in `make hil-soak` only",
}


def pytest_configure(config):
    for name, text in TIERS.items():
        config.addinivalue_line("markers", f"{name}: {text}")
    results.start()


@pytest.fixture(scope="session", autouse=True)
def tools():
    """What is missing is a failure, never a skip."""
    lack = machine.missing()
    if lack:
        pytest.exit(f"missing: {', '.join(lack)}; `make hil` brings it", returncode=3)


@pytest.fixture(params=machine.KINDS)
def kind(request):
    return request.param


@pytest.fixture
def seed():
    """For every random choice of a test; HIL_SEED repeats one."""
    chosen = int(os.environ.get("HIL_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"HIL_SEED={chosen}")
    return chosen


@pytest.fixture
def bench(tmp_path):
    with Bench(tmp_path / "bench") as made:
        yield made


@pytest.fixture
def make_world(kind, tmp_path, bench, seed):
    """Worlds with a broker and a gateway in common: make_world(mode of the line, name)."""
    made = []

    def make(mode="serial", name="board", knobs=None, **settings):
        box = LinkBox(bench.port, mode, seed)
        box.__enter__()
        made.append(box)
        world = World(kind, tmp_path / name, bench, box, knobs)
        made.append(world)
        world.commission(name, **settings)
        return world

    try:
        yield make
    finally:
        for thing in reversed(made):
            thing.close()


@pytest.fixture
def world(make_world):
    return make_world()
