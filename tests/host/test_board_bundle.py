"""What `edge-agent flash` brings to an ESP32 or a Pico, run from the bundle by MicroPython, with a
`machine` and a `network` of the tests in place of the chip's."""

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.errors import ConfigError
from edge_agent.tools import freight

ROOT = Path(__file__).resolve().parents[2]
INTERPRETER = Path(sys.executable).with_name("micropython")
ARCH = {"x86_64": "x64"}.get(platform.machine())

# An MPU6050 that lies flat and turns about z, on an I2C bus, as registers.
CHIP = """
import sys
sys.path.append(CORE)
from fake_board import Machine, Network
class I2C:
    def __init__(self, freq=0, scl=None, sda=None): print("i2c", freq, scl, sda)
    def readfrom_mem(self, address, register, count):
        if address != 0x68: raise OSError(19)
        if register == 0x75: return b"\\x68"
        self.n = getattr(self, "n", 0) + 1
        z = (4096 + self.n % 2).to_bytes(2, "big")
        return b"\\x00\\x01\\x00\\x02" + z + bytes(6) + b"\\x03\\xd7"
    def writeto_mem(self, address, register, data): print("set", register, data[0])
machine, network = Machine(), Network()
machine.SoftI2C, machine.Pin = I2C, lambda n: n
sys.modules["machine"], sys.modules["network"] = machine, network
"""
RUN = """
import asyncio
from edge_agent.config import Config
from edge_agent.domain import Domain
from mpy_port.crypto import StockCrypto
domain = Domain.load(open(DOMAIN, "rb").read(), StockCrypto(), verify=False, lean=True)
make = __import__("mpy_port.boards." + MODULE, None, None, ("make_board",)).make_board
board = make(Config.from_json(FIELDS), domain)
window = asyncio.run(board.sensor.read())
print("window", len(window.samples), list(window.samples[:6]), board.model.labels)
print("life", board.life.wake is not None, board.woken)
"""


def shown():
    """What docs/flash-esp32.md adds to a site's file."""
    page = (ROOT / "docs" / "flash-esp32.md").read_text()
    (fields,) = re.findall(r"^```json north.json\n(.*?)^```", page, re.M | re.S)
    return dict(json.loads(fields))


def test_the_adapter_makes_a_board_of_what_the_page_shows(tmp_path):
    made = {}
    for name, module, sleep in (
        ("esp32-c3", "esp32", {"mode": "deep"}),
        ("pico", "rp2", {"mode": "light"}),
    ):
        at = tmp_path / name
        made[name] = freight.make_bundle(name, ARCH, at)
        assert made[name]["board"] == module
        fields = shown()
        assert set(fields) == {"model", "domain", "board", "sensor"}
        fields.update(agent="00" * 8, key="11" * 32, delivery={"duty_s": 3600})
        fields["journal"] = {"path": str(tmp_path / ("journal-" + name))}
        fields["model"], fields["domain"] = (str(ROOT / fields[n]) for n in ("model", "domain"))
        fields["board"]["sleep"] = sleep
        names = {
            "CORE": str(ROOT / "tests" / "core"),
            "DOMAIN": fields["domain"],
            "FIELDS": json.dumps(fields),
            "MODULE": module,
        }
        head = "".join(f"{key} = {value!r}\n" for key, value in names.items())
        done = subprocess.run(
            [INTERPRETER, "-X", "heapsize=4M", "-c", head + CHIP + RUN],
            env={"MICROPYPATH": f".frozen:{at / 'lib'}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "i2c 400000 9 8" in done.stdout
        # +-8 g and +-2000 degrees/s are as many counts as they are steps.
        assert re.search(r"window 768 \[1, 2, 409[67], 0, 0, 983\] 7", done.stdout), done.stdout
        assert f"life {sleep['mode'] == 'deep'} (0, 0)" in done.stdout
    assert any("sensors" in name for name in made["pico"]["files"])


def test_a_program_takes_an_adapter_only_if_it_names_one(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("from mpy_port.start import start\n")
    manifest = freight.make_bundle("esp32-c3", "rv32imc", tmp_path / "own", str(own))
    assert manifest["board"] is None
    assert not [name for name in manifest["files"] if "sensors" in name]
    own.write_text("from mpy_port.sensors import open_sensor\nfrom mpy_port.start import start\n")
    manifest = freight.make_bundle("esp32-c3", "rv32imc", tmp_path / "with", str(own))
    assert manifest["board"] == "esp32"
    assert [name for name in manifest["files"] if "sensors/chips" in name]


@pytest.mark.parametrize("board", ["qemu-rv32", "qemu-m3"])
def test_boards_without_a_radio_get_nothing_of_it(board, tmp_path):
    manifest = freight.make_bundle(board, "rv32imc", tmp_path / board)
    assert not [n for n in manifest["files"] if "sensors" in n or n.endswith("wifi.mpy")]
    assert freight.check_bundle(tmp_path / board, board, "rv32imc") == manifest
    # The architecture is right, the rest is not.
    with pytest.raises(ConfigError, match=r"adapter of other boards \(qemu\)"):
        freight.check_bundle(tmp_path / board, "esp32-c3", "rv32imc")
