"""docs/your-sensor.md: its programs, as they stand there."""

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

from edge_agent.tools import freight

ROOT = Path(__file__).resolve().parents[2]
SENSOR = (ROOT / "docs" / "your-sensor.md").read_text()
INTERPRETER = Path(sys.executable).with_name("micropython")
ARCH = {"x86_64": "x64"}.get(platform.machine())
HEALTH = ROOT / "examples" / "health"  # its windows are of one sample

# A load cell's amplifier on pins 4 and 5: ready, then 24 bits of -256, and again. `start` hands
# over what the program would be started with.
BOARD = """
import asyncio, sys
sys.path.append(CORE)
from fake_board import Machine, Network
class Pin:
    IN, OUT = 0, 1
    bits = []
    def __init__(self, number, mode):
        assert (number, mode) in ((4, 0), (5, 1))
        self.data = number == 4
    def value(self, level=None):
        if self.data:
            if not Pin.bits: Pin.bits = [0] + [1] * 16 + [0] * 8
            return Pin.bits.pop(0)
machine, network = Machine(), Network()
machine.Pin = Pin
sys.modules["machine"], sys.modules["network"] = machine, network
made = []
class Start:
    start = staticmethod(made.append)
sys.modules["mpy_port.start"] = Start
import edge_app
from edge_agent.config import Config
from edge_agent.domain import Domain
from mpy_port.crypto import StockCrypto
domain = Domain.load(open(DOMAIN, "rb").read(), StockCrypto(), verify=False, lean=True)
board = made[0](Config.from_json(FIELDS), domain)
window = asyncio.run(board.sensor.read())
print("window", list(window.samples), board.life.wake is not None, board.sensor.due_ms() <= 100)
"""


def page(name):
    (found,) = re.findall(rf"^```python {re.escape(name)}\n(.*?)^```", SENSOR, re.M | re.S)
    return found


def test_it_is_tried_on_both_interpreters(tmp_path):
    for name in ("scale.py", "try.py"):
        (tmp_path / name).write_text(page(name))
    for interpreter in (sys.executable, INTERPRETER):
        done = subprocess.run(
            [interpreter, "try.py"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "MICROPYPATH": f"{tmp_path}:{ROOT}:.frozen"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout == "a load of -1\n", done.stderr


def test_the_program_is_built_for_a_board_and_senses(tmp_path):
    """One file, as the page says; every module compiled for the board, and once more for here,
    where MicroPython runs what was compiled."""
    whole = page("scale.py") + page("main.py").replace("from scale import LoadCell\n", "")
    assert "scale" not in whole.replace("scale=", "")
    (tmp_path / "own.py").write_text(whole)
    for arch in (freight.about("esp32-c3")["arch"], ARCH):
        made = freight.make_bundle("esp32-c3", arch, tmp_path / arch, str(tmp_path / "own.py"))
        assert made["board"] == "esp32"
        assert {"lib/edge_app.mpy", "lib/mpy_port/sensors/sampled.mpy"} <= set(made["files"])
    (fields,) = re.findall(r"^```json board.json\n(.*?)^```", SENSOR, re.M | re.S)
    fields = json.loads(fields)
    fields["sensor"] = {"kind": "scale", "data": 4, "clock": 5}
    fields["board"]["sleep"] = {"mode": "deep"}
    fields.update(agent="00" * 8, key="11" * 32, journal={"path": str(tmp_path / "journal")})
    fields.update(model=str(HEALTH / "health.tflite"), delivery={"duty_s": 3600})
    names = {
        "CORE": str(ROOT / "tests" / "core"),
        "DOMAIN": str(HEALTH / "health.domain"),
        "FIELDS": json.dumps(fields),
    }
    head = "".join(f"{key} = {value!r}\n" for key, value in names.items())
    done = subprocess.run(
        [INTERPRETER, "-X", "heapsize=4M", "-c", head + BOARD],
        env={"MICROPYPATH": f".frozen:{tmp_path / ARCH / 'lib'}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # -256 >> 8, on the domain's first axis.
    assert re.fullmatch(r"window \[-1(, 0)*\] True True\n", done.stdout), done.stdout
