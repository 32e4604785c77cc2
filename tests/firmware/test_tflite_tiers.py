"""The native and viper kernels where they run: two unix interpreters and two emulated machines.

The unix interpreters run the whole conformance zoo. The emulated Cortex-M3 and RISC-V run
a part of it, and all of it with ZOO=all in the environment (five minutes). Needs what
`make micropython` builds.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mpy_port.tflite import Interpreter, ModelError  # noqa: E402
from tests.zoo import cases, fuzz  # noqa: E402
from tests.zoo.machines import BUILT, MACHINES, Machine, available, library  # noqa: E402
from tests.zoo.make_golden import digest, read_golden  # noqa: E402

GOLDEN = {name: (hashed, length) for name, (hashed, length, _) in read_golden().items()}
ALL = os.environ.get("ZOO") == "all"
UNIX = {
    "x64": Path(sys.executable).with_name("micropython"),
    "x86": BUILT / "micropython32",
}
# Machine, and the architecture of the native kernels on it.
NATIVE = (("m3", "armv7m"), ("m3", "armv6m"), ("rv32", "rv32imc"))


@pytest.fixture(scope="session")
def zoo():
    return {name: (model, feeds) for name, model, feeds in cases.everything()}


@pytest.fixture(scope="session")
def folder(zoo, tmp_path_factory):
    place = tmp_path_factory.mktemp("zoo")
    for name, (model, feeds) in zoo.items():
        (place / (name + ".tflite")).write_bytes(model)
        (place / (name + ".in")).write_bytes(b"".join(feeds))
    return place


@pytest.fixture(scope="session")
def built():
    """Builds native kernels. What they need is brought by `make micropython`."""

    def build(arch):
        if not (BUILT / "source").exists():
            pytest.fail("run `make micropython` first")
        command = ["sh", ROOT / "tools" / "natmod.sh", arch]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return build


def results(text):
    """name -> (hash, bytes) of what run_models printed; errors as text."""
    found = {}
    for line in text.splitlines():
        name, tier, *rest = line.split()
        found[name] = " ".join(rest) if tier == "error" else (rest[0], int(rest[1]))
    return found


def on_unix(arch, *command):
    if not UNIX[arch].exists():
        pytest.fail(f"no {UNIX[arch]}: run `make micropython`")
    done = subprocess.run(
        [UNIX[arch], "-X", "heapsize=4M", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout


@pytest.mark.parametrize("tier", ["native", "viper"])
@pytest.mark.parametrize("arch", UNIX)
def test_whole_zoo_on_unix(folder, built, arch, tier):
    if tier == "native":
        built(arch)
    out = on_unix(arch, ROOT / "tests" / "zoo" / "run_models.py", folder, tier)
    assert results(out) == GOLDEN
    assert " %s " % tier in out.splitlines()[0]


@pytest.mark.parametrize("tier", ["native", "viper"])
@pytest.mark.parametrize("arch", UNIX)
def test_random_calls_on_unix(built, arch, tier):
    if tier == "native":
        built(arch)
    out = on_unix(arch, ROOT / "tests" / "zoo" / "run_calls.py", tier, "250")
    assert out.splitlines()[-1].endswith(" calls, 0 wrong"), out[-3000:]
    assert int(out.splitlines()[-1].split()[0]) >= 1000


@pytest.fixture(scope="session")
def damaged(tmp_path_factory):
    """A folder of damaged models, and what the plain tiers make of them."""
    place, right = tmp_path_factory.mktemp("damaged"), {}
    seeds = fuzz.load_seeds()
    for k in range(1200):
        rng = random.Random(k)
        _, model, words = rng.choice(seeds)
        data, name = fuzz.damage(rng, model, words), "damaged_%04d" % k
        try:
            loaded = Interpreter(data, tier="numpy", arena_limit=1 << 17)
        except ModelError as error:
            if "the limit is" in str(error):
                continue  # of the host; an interpreter has the limit of its heap
            right[name] = "error"
        else:
            if fuzz.work(loaded) > fuzz.WORK:
                continue
            for k, info in enumerate(loaded.inputs):
                loaded.set_input(bytes(info.size), k)
            loaded.invoke()
            out = b"".join(bytes(loaded.output(k)) for k in range(len(loaded.outputs)))
            right[name] = (digest(out), len(out))
            (place / (name + ".in")).write_bytes(bytes(sum(i.size for i in loaded.inputs)))
        (place / (name + ".tflite")).write_bytes(data)
    assert 300 < sum(v == "error" for v in right.values()) < len(right) - 100
    return place, right


@pytest.mark.parametrize("tier", ["native", "viper"])
@pytest.mark.parametrize("arch", UNIX)
def test_damaged_models(damaged, built, arch, tier):
    """Refused like on the host, or run with the same result: the native reader above all."""
    if tier == "native":
        built(arch)
    place, right = damaged
    out = on_unix(arch, ROOT / "tests" / "zoo" / "run_models.py", place, tier)
    found = {n: "error" if isinstance(v, str) else v for n, v in results(out).items()}
    assert found == right


def machine_files(machine, arch):
    """The library on a machine with the native kernels of one architecture."""
    if available(machine):
        pytest.fail(f"no {available(machine)}: run `make micropython`")
    files = library(MACHINES[machine][0], native=False)
    if arch:
        name = "mpy_port/tflite/natmod/kernels_%s.mpy" % arch
        files[name] = (ROOT / name).read_bytes()
    for script in ("run_models", "run_calls"):
        path = "tests/zoo/%s.py" % script
        files[path] = (ROOT / path).read_bytes()
    return files


def check_machine(zoo, machine, tier, files):
    """Part of the zoo and random calls; whole networks one machine each, as on a board."""
    operators = [name for name in zoo if not name.startswith("network_")]
    # MobileNet at 96 x 96 does not fit the 140 KB of the stock firmware, plan or not.
    networks = [n for n in zoo if n.startswith("network_") and n != "network_mobilenet"]
    if not ALL:
        operators, networks = operators[::24], ["network_menagerie"]
    run = "import tests.zoo.run_models as r\nr.main('/rom/zoo', %r)" % tier
    found = {}
    for group in [operators, *[[name] for name in networks]]:
        rom = dict(files)
        for name in group:
            model, feeds = zoo[name]
            rom["zoo/" + name + ".tflite"] = model
            rom["zoo/" + name + ".in"] = b"".join(feeds)
        with Machine(machine, rom, limit=300) as m:
            found.update(results(m.run(run)))
    assert found == {name: GOLDEN[name] for name in operators + networks}
    with Machine(machine, files, limit=300) as m:
        count = 300 if ALL else 10
        out = m.run("import tests.zoo.run_calls as r\nr.main(%r, %d, 5)" % (tier, count))
    assert out.splitlines()[-1].endswith(" calls, 0 wrong"), out[-3000:]


@pytest.mark.parametrize(("machine", "arch"), NATIVE)
def test_native_on_machine(zoo, built, machine, arch):
    built(arch)
    check_machine(zoo, machine, "native", machine_files(machine, arch))


@pytest.mark.parametrize("machine", MACHINES)
def test_viper_on_machine(zoo, machine):
    check_machine(zoo, machine, "viper", machine_files(machine, None))


def test_the_best_tier_here_is_taken(folder, built):
    """Native when it is there, viper when it is hidden, and each can be forced."""
    built("x64")
    script = (
        "import sys\nsys.path.insert(0, %r)\n"
        "from mpy_port.tflite import kernels\n"
        "print([kernels.tier_name(m) for m in kernels.Tiers().all()])\n"
        "print([kernels.tier_name(m) for m in kernels.Tiers('viper').all()])\n"
    ) % str(ROOT)
    first, second = on_unix("x64", "-c", script).splitlines()
    assert first == "['native', 'viper', 'python']"
    assert second == "['viper', 'python']"
