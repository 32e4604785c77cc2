"""docs/flash-esp32.md and docs/boards.md: what they show is what there is."""

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.tools import freight
from edge_agent.tools.bundle import ARCHITECTURES
from edge_agent.tools.ports import known
from edge_agent.tools.preflight import table

ROOT = Path(__file__).resolve().parents[2]
FLASH = (ROOT / "docs" / "flash-esp32.md").read_text()
BOARDS = (ROOT / "docs" / "boards.md").read_text()
INTERPRETER = Path(sys.executable).with_name("micropython")
ARCH = {"x86_64": "x64"}.get(platform.machine())

# What the program asks of an ESP32, besides what every MicroPython has.
FAKES = """
import sys
class ADC:
    def __init__(self, pin): self.pin = pin
    def read_u16(self): return 50000
class Wlan:
    def active(self, on): pass
    def connect(self, ssid, password): self.on = ssid == "plant"
    def isconnected(self): return self.on
class Network:
    STA_IF = 0
    WLAN = staticmethod(lambda number: Wlan())
class Machine:
    Pin = staticmethod(lambda number: number)
Machine.ADC = ADC
sys.modules["network"], sys.modules["machine"] = Network, Machine
"""
RUN = """
import asyncio, json
from edge_agent.config import Config
from edge_agent.domain import Domain
from mpy_port.crypto import StockCrypto
domain = Domain.load(open(DOMAIN, "rb").read(), StockCrypto(), verify=False, lean=True)
board = make_board(Config.from_json(FIELDS), domain)
window = asyncio.run(board.sensor.read())
print("window", len(window.samples), window.samples[0], board.model.labels)
"""


def block(name):
    (found,) = re.findall(rf"^```\w+ {re.escape(name)}\n(.*?)^```", FLASH, re.M | re.S)
    return found


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("docs") / "board.py"
    path.write_text(block("board.py"))
    return path


def test_the_program_shown_makes_a_board(program, tmp_path):
    """Compiled for what it is for, and run here: on MicroPython, from the bundle made for it."""
    made = freight.make_bundle("esp32-c3", "rv32imc", tmp_path / "c3", str(program))
    assert "lib/edge_app.mpy" in made["files"] and made["board"] is None
    lib = tmp_path / "here"
    freight.make_bundle("esp32-c3", ARCH, lib, str(program))
    fields = json.loads(block("north.json")) | json.loads(block("other.json"))
    fields["sensor"]["every_ms"] = 0
    fields.update(agent="00" * 8, key="11" * 32, journal={"path": str(tmp_path / "journal")})
    fields["model"], fields["domain"] = (str(ROOT / fields[name]) for name in ("model", "domain"))
    source = program.read_text()
    assert source.endswith("\nstart(make_board)\n")
    code = FAKES + source.replace("\nstart(make_board)\n", "")
    code += f"\nDOMAIN = {fields['domain']!r}\nFIELDS = {json.dumps(fields)!r}\n" + RUN
    done = subprocess.run(
        [INTERPRETER, "-X", "heapsize=4M", "-c", code],
        env={"MICROPYPATH": f".frozen:{lib / 'lib'}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["window", str(128 * 6), "25000", "7"]


def test_a_program_that_is_none_is_refused(tmp_path, monkeypatch):
    (tmp_path / "bad.py").write_text("def broken(:\n")
    with pytest.raises(freight.ConfigError, match="is no Python"):
        freight.make_bundle("esp32-c3", "rv32imc", tmp_path / "out", str(tmp_path / "bad.py"))
    monkeypatch.setattr(freight, "about", lambda board: {"module": "toaster"})
    with pytest.raises(freight.ConfigError, match=r"no adapter mpy_port/boards/toaster.*--main"):
        freight.make_bundle("esp32-c3", "rv32imc", tmp_path / "out")


def test_what_it_says_is_what_is_said():
    """The first column of the page's table of troubles, against the sources."""
    sources = "".join(p.read_text() for p in (ROOT / "edge_agent" / "tools").glob("*.py"))
    rows = re.findall(r"^\| ([^|]+) \|", FLASH.split("## When it does not work")[1], re.M)
    said = [row.split("dialout")[0] for row in rows if row not in ("it says", "---")]
    assert len(said) >= 8
    for text in said:
        # Up to the first thing that differs from case to case.
        start = re.split(r"[:'.]? ?[\d'.]", text.split(": minicom")[0])[0].strip()
        assert len(start) > 6 and start in sources, (text, start)


def test_every_board_is_in_the_table():
    rows = {row[0]: row for row in re.findall(r"^\| `(\w[\w-]*)` \|(.*)\|$", BOARDS, re.M)}
    boards = table("boards.json")["boards"]
    assert set(rows) == set(boards) == set(known()["boards"])
    for name, (_, text) in rows.items():
        cells = [cell.strip() for cell in text.split("|")]
        assert cells[0].startswith(boards[name]["chip"].split(" (")[0]), name
        assert f"`{boards[name]['arch']}`" in cells, name
        assert "silicon" not in text and ("emulated" in text or "not run" in text), name
        assert boards[name]["arch"] in ARCHITECTURES
    assert "tested on ESP32" not in FLASH + BOARDS
