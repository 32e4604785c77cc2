"""`edge-agent flash` from an installed wheel: both boards over their serial lines, and cuts.

A board is never bricked: after any cut and a new power-on it runs the old agent or the new one,
or says that it is half-flashed; and the same command again finishes it. What its journal held
reaches the gateway.
"""

import base64
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from gateway_kit import gateway
from harness import results
from harness.bench import Ledger
from harness.deploy import MODELS, windows
from harness.desk import Desk
from harness.linkbox import LinkBox
from harness.machine import CUT, Machine
from harness.wheel import Installed
from harness.world import BATCH

fast, full = pytest.mark.fast, pytest.mark.full
PROGRAM = Path(__file__).parent / "device" / "flash" / "program.py"
HEAP_KIB = {"romfs": 160, "files": 256}
PLACES = [("rv32", "romfs"), ("m3", "files")]
OTHER_PLACES = [("rv32", "files"), ("m3", "romfs")]
# Steps of a flash as the tool says them, and bytes that go to the board in each, about.
STEPS = {
    "romfs": {"look": 3000, "copy": 2500, "rom": 60_000, "verify": 60, "switch": 500, "tidy": 60},
    "files": {"look": 3000, "copy": 12_000, "verify": 60, "switch": 500, "tidy": 60},
}
WINDOW_FILES = 4  # of recorded windows that go along: enough for a sensor


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    return Installed(tmp_path_factory.mktemp("wheel"))


class Shop:
    """One board on a desk, its site's file, and the tool."""

    def __init__(self, kind, place, folder, bench, box, installed):
        self.kind, self.place, self.folder = kind, place, folder
        self.bench, self.box, self.installed = bench, box, installed
        folder.mkdir(parents=True, exist_ok=True)
        self.machine = Machine(kind, folder / "machine")
        self.desk = Desk(self.machine)
        self.fields = bench.enrol(folder.name)
        self.fields["broker"].update(host="uart:1", keepalive_s=5, connect_timeout_s=3)
        self.fields["sensor"] = {"kind": "windows", "path": "windows.bin", "gap_ms": 300}
        self.fields["journal"] = {"segment_bytes": 8192, "batch": BATCH, "batch_ms": 200}
        self.fields["delivery"] = {"pace_per_s": 2000, "ack_timeout_s": 5}
        self.fields["model"] = str(MODELS / "watch_mlp_int8.tflite")
        self.fields["domain"] = str(MODELS / "watch.domain")
        recorded = windows()
        (folder / "windows.bin").write_bytes(recorded[: len(recorded) // 48 * WINDOW_FILES])
        self.write_site("north.json")

    def write_site(self, name, **more):
        path = self.folder / name
        path.write_text(json.dumps({**self.fields, **more}))
        path.chmod(0o600)

    def power(self, **knobs):
        self.machine.kill()
        options = {"heap": HEAP_KIB[self.place], **knobs}
        self.machine.start(line=self.box.port, options=options)

    def words(self, *more, site="north.json", board=None, port=None):
        board = board or "qemu-" + self.kind
        port = port or self.desk.plug()
        place = ("--place", self.place)
        return ("flash", "--board", board, "--port", port, "--site", site, *place, *more)

    def flash(self, *more, **how):
        return self.installed.json(*self.words(*more, **how), cwd=self.folder)

    def refused(self, *more, status=2, **how):
        """The message of a flash that ends with that exit status."""
        words = self.words(*more, **how)
        code, out, said = self.installed.run(*words, cwd=self.folder, seconds=120)
        assert code == status, (code, out, said)
        assert self.fields["key"] not in said + out
        return said.splitlines()[-1] if said else ""

    def bundle(self, name, filler):
        program = self.folder / (name + ".py")
        program.write_text(PROGRAM.read_text().replace('"FILLER"', repr("F" * filler)))
        words = ("bundle", "--board", "qemu-" + self.kind, "--main", program, "--out", name)
        if self.kind == "m3":
            words += ("--arch", "armv7em")
        return self.installed.json(*words, cwd=self.folder)

    @property
    def ledger(self):
        return Ledger(self.machine.ledger)

    def state(self, seconds=30):
        """What the board says after a power-on: "ready", or "half"; with what it said."""
        start = len(self.machine.said())
        self.power()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            said = self.machine.said()[start:]
            for word in ("ready", "half"):
                if f"edge: {word} " in said:
                    return word
            if ">>> " in said and "edge:" not in said:
                return "empty"
            time.sleep(0.05)
        raise AssertionError(f"bricked: {self.machine.story()}")

    def close(self):
        self.desk.unplug()
        self.machine.close()


@pytest.fixture
def make_shop(tmp_path, bench, seed, installed):
    made = []

    def make(kind, place):
        box = LinkBox(bench.port, "serial", seed)
        box.__enter__()
        made.append(box)
        shop = Shop(kind, place, tmp_path / f"{kind}-{place}", bench, box, installed)
        made.append(shop)
        return shop

    try:
        yield make
    finally:
        for thing in reversed(made):
            thing.close()


class Listener:
    """Every command line of this machine, while it is on."""

    def __init__(self):
        self.seen = set()
        self._on = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self):
        while not self._on.wait(0.02):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    self.seen.add((process / "cmdline").read_bytes())
                    self.seen.add((process / "environ").read_bytes())
                except OSError:
                    continue

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._on.set()
        self._thread.join()


def history(shop):
    """What the friendly REPL's history shows: arrow up, many times."""
    with shop.machine.repl() as repl:
        line = repl._transport
        line.exit_raw_repl()
        start = len(shop.machine.said())
        line.serial.write(b"\x1b[A" * 12 + b"\x03")
        time.sleep(1)
        return shop.machine.said()[start:]


def first_flash(shop):
    shop.power()
    with Listener() as listener:
        status, out, said = shop.installed.run(*shop.words("--json"), cwd=shop.folder)
    assert status == 0, said + shop.machine.story()
    found = json.loads(out)
    assert found["found"] == "no agent" and found["acked"] >= 1 and found["kernels"] == "native"
    assert found["place"] == shop.place and found["verified"] >= 1
    assert shop.bench.count() >= found["acked"]
    print(f"{shop.kind} {shop.place}: first acked outcome after {found['first_ack_seconds']} s")
    results.record(
        what="flash, first ack", machine=shop.kind, committed=found["acked"],
        delivered=found["acked"], seconds=found["first_ack_seconds"], flash=found["flash_seconds"],
        place=shop.place,
    )  # fmt: skip
    # The key is in the board's file, and nowhere else.
    assert any(b"flash\0--board" in seen for seen in listener.seen)
    texts = [*(seen.decode("latin-1") for seen in listener.seen), out, said]
    texts += [shop.machine.said(), history(shop)]
    for form in forms(shop.fields["key"]):
        assert not any(form in text for text in texts)
    return found


def forms(key):
    """A key as it could show: itself, and in base64 at any of the three places it can start."""
    yield key
    for skip in range(3):
        yield base64.b64encode(b"\0" * skip + key.encode()).decode()[4:-4]


@fast
@pytest.mark.parametrize(("kind", "place"), PLACES)
def test_first_flash_again_and_dry(make_shop, kind, place):
    shop = make_shop(kind, place)
    found = first_flash(shop)
    again = shop.flash()
    assert (again["send"], again["id"], again["journal"]) == (0, found["id"], found["journal"])
    assert again["boot"] == found["boot"] + 1 and again["acked"] >= 1
    # A dry run says what would go and changes nothing: the agent that is there goes on.
    with_less = shop.fields["sensor"] | {"gap_ms": 400}
    shop.write_site("other.json", sensor=with_less)
    start = len(shop.machine.said())
    would = shop.flash("--dry-run", site="other.json")
    assert would["dry_run"] and any("device.json" in path for path in would["would_send"])
    shop.machine.until("edge: ready", 30, after=start)
    third = shop.flash("--wait", 0)
    assert third["send"] == 0 and third["found"] == f"agent {found['version']} ({found['id']})"
    # Another agent's site, or an older key, does not get at a journal that is not its own.
    other = json.loads(json.dumps(shop.bench.enrol("other")))
    shop.write_site("other.json", agent=other["agent"], key=other["key"])
    assert f"this board is agent {shop.fields['agent']}" in shop.refused(site="other.json")
    shop.write_site("older.json", generation=0)
    assert "key generation 1" in shop.refused(site="older.json")


@full
@pytest.mark.parametrize(("kind", "place"), OTHER_PLACES)
def test_first_flash_the_other_way(make_shop, kind, place):
    first_flash(make_shop(kind, place))


@fast
def test_bad_input_is_refused_and_nothing_changes(make_shop):
    shop = make_shop("rv32", "romfs")
    shop.power()
    assert "not qemu-m3" in shop.refused(board="qemu-m3")
    assert "Known: esp32" in shop.refused(board="toaster")
    assert "no such port" in shop.refused(port="/dev/ttyNONE")
    assert "there is no south" in shop.refused(site="south")
    shop.write_site("bad.json", model=str(MODELS / "watch.domain"))
    assert "model" in shop.refused(site="bad.json", status=3)
    shop.write_site("open.json")
    (shop.folder / "open.json").chmod(0o644)
    assert "chmod 600" in shop.refused(site="open.json")
    # Somebody has the port.
    port = shop.desk.plug()
    holder = subprocess.Popen(
        ["python3", "-c", f"import fcntl,time;f=open({port!r},'rb+',0);"
         "fcntl.flock(f,fcntl.LOCK_EX);print(1,flush=True);time.sleep(60)"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        holder.stdout.readline()
        said = shop.refused(port=port, status=3)
        assert "another program uses it: python" in said
    finally:
        holder.kill()
        holder.wait()
    assert shop.state() == "empty"


@fast
def test_too_large_says_by_how_much(make_shop):
    shop = make_shop("m3", "files")
    shop.power(fs=128)
    said = shop.refused(status=3)
    has, need, short = (int(n) for n in re.findall(r"(\d+)", said.split("has", 1)[1])[:3])
    assert need - has == short > 0 and has <= 128 * 1024
    assert re.search(r"lib/edge_agent/device.mpy \d+", said)


@full
def test_a_new_key_and_a_program_of_somebody_s(make_shop):
    """What waits under the old key is delivered; a main.py that is there is kept."""
    shop = make_shop("rv32", "romfs")
    mine = b"print('mine')\n"
    shop.power(main=0)
    with shop.machine.repl() as repl:
        repl.put("/main.py", mine)
    shop.power()
    shop.bundle("one", 200)
    shop.flash("--bundle", "one")
    with shop.machine.repl() as repl:
        assert repl.get("/main.old.py") == mine
    shop.box.cut()
    assert shop.state() == "ready"
    before = len(shop.ledger.records)
    shop.bench.until(lambda: len(shop.ledger.records) > before + 3, 30, shop.machine.story)
    name = shop.folder.name
    new = shop.folder / "rotated.json"
    gateway("-C", shop.bench.folder, "rotate", name, "--out", new)
    fields = json.loads(new.read_text())
    assert fields["generation"] == shop.fields["generation"] + 1
    fields["broker"] = shop.fields["broker"]
    shop.write_site("rotated.json", **fields)
    shop.box.mend()
    assert shop.flash("--bundle", "one", site="rotated.json")["acked"] >= 1
    shop.bench.until(lambda: not shop.bench.judge(shop.ledger).lost, 60, shop.machine.story)
    # The old file is refused from now on.
    assert "the board has key generation 2" in shop.refused("--bundle", "one")


@full
def test_the_walk_of_the_documentation(make_shop):
    """Its blocks for a shell, with this board for that one."""
    shop = make_shop("rv32", "romfs")
    text = (MODELS.parent / "docs" / "flash-esp32.md").read_text()
    shop.power()
    (shop.folder / "north.json").unlink()
    port = shop.machine.pty
    for old, new in (
        ("-C gw", f"-C {shop.bench.folder}"),
        ("192.168.1.20", "uart:1"),
        ("--board esp32-c3", f"--board qemu-rv32 --port {port}"),
    ):
        assert old in text
        text = text.replace(old, new)
    said = ""
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S):
        script = f"set -e\nPATH={shop.installed.site}/bin:{Path(sys.executable).parent}:$PATH\n"
        done = subprocess.run(
            ["bash", "-c", script + block],
            cwd=shop.folder,
            env=shop.installed.env,
            capture_output=True,
            text=True,
            timeout=240,
        )
        said += done.stdout + done.stderr
        assert done.returncode == 0, said
        path = shop.folder / "north.json"
        if "enrol" in block:  # the block of JSON is merged into the site's file
            fields = json.loads(path.read_text())
            assert fields["broker"]["host"] == "uart:1"
            path.write_text(json.dumps({**shop.fields, **fields}))
    assert "Dry run; nothing was changed." in said and "in its gateway's custody" in said


# -- cuts -------------------------------------------------------------------------------------


class Cutter:
    """Flashes two versions in turn and cuts; counts what happened."""

    def __init__(self, shop, rng):
        self.shop, self.rng = shop, rng
        self.kinds, self.steps, self.states = Counter(), Counter(), Counter()
        shop.bundle("one", 200)
        shop.bundle("two", 3000)
        self.target = "one"

    def tool(self, *more):
        words = self.shop.words("--bundle", self.target, *more)
        return self.shop.installed.popen(*words, cwd=self.shop.folder)

    def complete(self):
        """A whole flash, all that waits delivered; the board belongs to the next version then."""
        self.shop.box.mend()
        if not self.shop.machine.running:
            self.shop.power()
        found = self.shop.flash("--bundle", self.target, "--wait", 90)
        assert found["acked"] >= 1
        self.next()
        return found

    def next(self):
        self.target = "two" if self.target == "one" else "one"

    def cut(self):
        """One flash that is cut at a step drawn at random, some bytes after it began."""
        kind = self.rng.choice(("line", "tool", "power", "flash", "hush"))
        steps = STEPS[self.shop.place]
        where = self.rng.choice(list(steps))
        count = self.rng.randrange(steps[where])
        self.shop.box.cut()
        self.shop.desk.unplug()
        knobs = {}
        if kind == "flash":
            knobs = {"main": 0, "cut": self.rng.randrange(250), "torn": self.rng.randrange(3)}
            self.shop.power(**knobs)
        elif not self.shop.machine.running:
            self.shop.power()
        tool = self.tool("--wait", 0)
        pull = {
            "line": self.shop.desk.pull,
            "hush": self.shop.desk.hush,
            "tool": tool.kill,
            "power": self.shop.machine.process.kill,
            "flash": lambda: None,
        }[kind]
        fired = []

        def action():
            fired.append(pull())

        reached = "look"
        if where == "look":
            self.shop.desk.after(count, action)
        for line in tool.stderr:
            word = line.strip()
            if word in steps:
                reached = word
                if word == where:
                    self.shop.desk.after(count, action)
        tool.stdout.read()
        status = tool.wait()
        tool.stderr.close()
        tool.stdout.close()
        machine = self.shop.machine
        # The tool is done and QEMU perhaps not quite.
        off = kind == "flash" and status != 0 and machine.wait(10) == CUT
        if not (off or (fired and status != 0)):
            # It came too late. Then all went well.
            assert status == 0, (kind, where, count, machine.story())
            self.next()
            if kind in ("flash", "power"):
                self.shop.power()
            return
        self.kinds[kind] += 1
        self.steps[reached] += 1
        state = self.shop.state()
        self.states[state] += 1
        if state == "ready":  # let it commit something that cannot be delivered
            until = time.monotonic() + 10
            before = len(self.shop.ledger.records)
            while len(self.shop.ledger.records) < before + 2 and time.monotonic() < until:
                time.sleep(0.05)


def cuts(shop, wanted, seed):
    rng = random.Random(seed)
    cutter = Cutter(shop, rng)
    shop.power()
    while sum(cutter.kinds.values()) < wanted:
        cutter.cut()
        if rng.random() < 0.2:
            cutter.complete()
    found = cutter.complete()
    # Once more with nothing to do, for what was committed since.
    shop.box.mend()
    end = time.monotonic() + 60
    while time.monotonic() < end and shop.bench.judge(shop.ledger).lost:
        time.sleep(0.5)
    shop.machine.kill()
    verdict = shop.bench.judge(shop.ledger)
    done = dict(cutter.kinds), dict(cutter.steps), dict(cutter.states)
    print(shop.kind, shop.place, *done, verdict, f"last {found['first_ack_seconds']} s")
    results.record(
        what=f"flash cut, {shop.place}", machine=shop.kind, cuts=sum(cutter.kinds.values()),
        bricked=0, **verdict._asdict(),
    )  # fmt: skip
    assert verdict.lost == 0, shop.machine.story()
    assert verdict.doubled == 0 and verdict.conflicts == 0 and verdict.committed > 0, verdict
    assert not shop.ledger.failures
    return cutter


@fast
@pytest.mark.parametrize(("kind", "place"), PLACES)
def test_a_few_cuts(make_shop, seed, kind, place):
    cuts(make_shop(kind, place), 2, seed)


@full
@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize(("kind", "place"), PLACES)
def test_many_cuts(make_shop, seed, kind, place, part):
    """With both boards and parts more than 100 cuts."""
    cutter = cuts(make_shop(kind, place), 25, seed + part)
    assert len(cutter.kinds) >= 4 and len(cutter.steps) >= 4
