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
from harness.port import Port  # noqa: E402
from harness.world import World  # noqa: E402

TIERS = {
    "fast": "in `make test`",
    "full": "in `make hil` besides",
    "soak": "in `make hil-soak` only",
}


def pytest_addoption(parser):
    group = parser.getgroup("a board of one's own")
    group.addoption("--port", help="serial port with the board's console, e.g. /dev/ttyACM0")
    group.addoption("--line", help="serial port at the board's UART(1), e.g. /dev/ttyUSB0")
    group.addoption("--kind", choices=machine.KINDS, default="rv32", help="its native code")


def pytest_configure(config):
    for name, text in TIERS.items():
        config.addinivalue_line("markers", f"{name}: {text}")
    config.addinivalue_line("markers", "board: can run on a board behind --port")
    results.start()


def pytest_collection_modifyitems(config, items):
    """With --port: the tests that a board can take, of its kind, one after the other."""
    if not config.getoption("--port"):
        return
    kind = config.getoption("--kind")
    rest = []
    for item in items[:]:
        there = getattr(item, "callspec", None)
        fits = there is not None and there.params.get("kind") == kind
        modes = {there.params.get("mode"), there.params.get("fault")} if there else set()
        if item.get_closest_marker("board") is None or not fits or "tcp" in modes:
            items.remove(item)
            rest.append(item)
    config.hook.pytest_deselected(items=rest)


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
def make_world(kind, tmp_path, bench, seed, request):
    """Worlds with a broker and a gateway in common: make_world(mode of the line, name)."""
    made = []
    option = request.config.getoption

    def make(mode="serial", name="board", knobs=None, **settings):
        box = LinkBox(bench.port, mode, seed)
        box.__enter__()
        made.append(box)
        board = None
        if option("--port"):
            board = Port(kind, option("--port"), option("--line"), tmp_path / name)
        world = World(kind, tmp_path / name, bench, box, knobs, board)
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
