"""Smaller modules do the same: their own tests run on them, on MicroPython."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.tools import bundle
from edge_agent.tools.shrink import shrink

ROOT = Path(__file__).resolve().parents[2]
MICROPYTHON = Path(sys.executable).with_name("micropython")
ARCH = {"x86_64": "x64"}.get(platform.machine())
CORE = ROOT / "tests" / "core"
# Of the core's tests those with the most of it behind them, and not the slowest.
TESTS = [
    *("test_agent", "test_cbor", "test_config", "test_connection", "test_core", "test_cose"),
    *("test_delivery", "test_domain", "test_egress", "test_features", "test_flash_store"),
    *("test_frame", "test_mqtt_session", "test_outcome", "test_tflite_classifier"),
    *("test_tflite_model", "test_head", "test_mail", "test_mail_agent", "test_synthesis"),
    "test_twins",
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The core's tests in a place where only the smaller modules are to be found."""
    at = tmp_path_factory.mktemp("small")
    scripts = (*sorted(CORE.glob("*.py")), *sorted((CORE / "upy").glob("*.py")))
    bundle.bundle(ARCH, at / "board", "unix", scripts=scripts)
    shutil.copytree(CORE, at / "tests" / "core")
    shutil.copytree(ROOT / "tests" / "vectors", at / "tests" / "vectors")
    (at / "models").symlink_to(ROOT / "models")
    return at


@pytest.mark.parametrize("part", [TESTS[0::2], TESTS[1::2]])
def test_the_cores_tests_pass(small, part):
    done = subprocess.run(
        [MICROPYTHON, "-X", "heapsize=16M", "tests/core/run.py", *part],
        cwd=small,
        env={"MICROPYPATH": f"{small}/board/lib:.frozen"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert ", 0 failed" in done.stdout
    assert int(done.stdout.splitlines()[-1].split()[0]) > 50


def test_it_is_smaller(small, tmp_path):
    """And in fewer modules: the agent is one."""
    plain = bundle.bundle(ARCH, tmp_path / "plain", "unix")
    tight = bundle.bundle(ARCH, tmp_path / "tight", "unix", scripts=())
    agent = [name for name in plain["files"] if name.startswith("lib/edge_agent/")]
    assert len(agent) > 30
    sizes = [
        sum(
            file["size"]
            for name, file in made["files"].items()
            if name.endswith(".mpy") and "/kernels/" not in name and "/natmod/" not in name
        )
        for made in (plain, tight)
    ]
    assert sizes[1] < 0.85 * sizes[0]
    names = (tmp_path / "tight.names.json").read_text()
    assert '"edge_agent.agent.Agent": "Agent"' in names


def small_of(sources, scripts=(), roots=("a.m",), public=()):
    texts, *_ = shrink(sources, list(scripts), tuple(public), list(roots))
    return texts


def run(texts, name="edge_agent.device"):
    space = {}
    exec(compile(texts[name], name, "exec"), space)
    return space


N = """
LIMIT = 3
HIGH = LIMIT * 2
_x = []

def _helper(value, more=1):
    return value + more

def use(first):
    return _helper(first) + HIGH
"""
M = """
_x = {}

def _other(a, b):
    return a * b

class Box:
    size = LIMIT

    def __init__(self, a):
        self._helper = a

    def grow(self, by, LIMIT=9):
        def inner(a):
            return a + by + self._helper + LIMIT
        return [inner(HIGH) for HIGH in range(by)]

def main(a, aa, b):
    box = Box(a)
    HIGH_ = HIGH
    return box.grow(aa), use(b), _other(a, b), HIGH_, box.size, (lambda a: a + aa)(1)
"""


def test_names_do_not_collide():
    """Closures, comprehensions, classes, parameters and globals of the same names."""
    whole = {}
    exec(N + M, whole)
    # In the module of its own it may have the name that the other module has, too.
    own = "from a.n import HIGH, LIMIT, use\n" + M.replace("_other", "_helper")
    text = small_of({"a.n": N, "a.m": own}, ["from a.m import main\nmain(1, 2, 3)"])
    got = run(text)
    (main,) = [v for v in got.values() if getattr(v, "__code__", None) and takes(v) == 3]
    assert main(4, 5, 6) == whole["main"](4, 5, 6)
    assert "LIMIT = " not in text["edge_agent.device"]


def takes(function):
    return function.__code__.co_argcount


THING = """
class Thing:
    def by_text(self):
        return 1

    def unused(self):
        return 2

    def __len__(self):
        return 3

def find(name):
    return getattr(Thing(), name)()

def main():
    return find("by_text")
"""


def test_what_is_used_by_name_stays():
    text = small_of({"a.m": THING}, ["from a.m import main"])["edge_agent.device"]
    assert "by_text" in text
    assert "__len__" in text
    assert "unused" not in text


VIPER = """
import micropython
STEP = 4

@micropython.viper
def main(p: ptr8, n: int) -> int:
    return p[STEP] + n
"""


def test_viper_keeps_its_types():
    text = small_of({"a.m": VIPER}, ["from a.m import main"])["edge_agent.device"]
    assert "p: ptr8, n: int) -> int" in text
    assert "p[4]" in text


def test_what_cannot_be_followed_is_refused():
    user = "from a import n\ndef main():\n    return n\n"
    sources = {"a.n": "def f():\n    pass\n", "a.m": user, "a.__init__": ""}
    with pytest.raises(ValueError, match="used as a value"):
        small_of(sources, ["from a.m import main"])
