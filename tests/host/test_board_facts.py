"""Boards that are refused: firmware that cannot be had here, so what they say is made up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.errors import ConfigError, RemoteError
from edge_agent.tools import board_facts, flash, repl
from edge_agent.tools.board_facts import check_board, check_owner, look
from edge_agent.tools.freight import about

C3 = {
    "name": "micropython", "platform": "esp32", "machine": "Generic ESP32C3 module with ESP32C3",
    "version": [1, 25, 0], "mpy": 6 | 3 << 8 | 11 << 10, "free": 130000, "block": 4096,
    "left": 500, "blocks": 512, "rom": [0, 0], "edge": None, "main": "", "whose": [],
    "journal": False, "watchdog": 0,
}  # fmt: skip
SITE = {"agent": "ab" * 8, "generation": 2}


class Board:
    """Answers what `look` asks; of a console it says lines."""

    device = "/dev/ttyACM0"

    def __init__(self, lines=(), **facts):
        self.facts = {**C3, **facts}
        self.lines, self.ran = lines, []

    def exec(self, code):
        self.ran.append(code)
        return ""

    def ask(self, expression):
        assert expression == "facts()"
        return json.loads(json.dumps(self.facts))

    def start(self):
        pass

    def console(self, until):
        yield from self.lines


def test_a_board_as_it_should_be():
    facts = look(Board())
    assert (facts.arch, facts.left, facts.rom, facts.edge) == ("rv32imc", 500 * 4096, 0, {})
    check_board(facts, "esp32-c3", about("esp32-c3"), "P")
    check_owner(facts, SITE, "P")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"version": [1, 22, 2]}, r"runs MicroPython 1\.22\.2, the agent needs 1\.25"),
        ({"name": "circuitpython"}, "runs circuitpython, not MicroPython"),
        ({"mpy": 6 | 1 << 8 | 11 << 10}, r"wants \.mpy files of version 6\.1, we make 6\.3"),
        ({"mpy": 7 | 3 << 8 | 11 << 10}, r"wants \.mpy files of version 7\.3"),
        ({"mpy": 6 | 3 << 8}, "loads no native code"),
    ],
)
def test_firmware_that_will_not_do(facts, message):
    with pytest.raises(ConfigError, match=message):
        look(Board(**facts))


def test_another_board_is_named():
    """The chip's whole name counts: an ESP32 is no ESP32C3."""
    for board, machine in (
        ("esp32", C3["machine"]),
        ("esp32-c3", "Generic ESP32 module with ESP32"),
    ):
        facts = look(Board(machine=machine))
        with pytest.raises(ConfigError, match=rf"this is '{machine}' \(esp32\), not {board} \("):
            check_board(facts, board, about(board), "P")


def test_owners():
    same = ["/edge-a/device.json", SITE["agent"], 2]
    check_owner(look(Board(whose=[same], journal=True)), SITE, "P")
    check_owner(look(Board(whose=[[*same[:2], 1]], journal=True)), SITE, "P")  # rotated since
    check_owner(look(Board(whose=[["/device.json", None, 0]])), SITE, "P")
    for facts, message in (
        ({"whose": [["/device.json", "cd" * 8, 0]]}, f"this board is agent {'cd' * 8}"),
        ({"whose": [[*same[:2], 3]]}, "key generation 3, the site's file has 2"),
        ({"journal": True}, "nothing says whose"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_owner(look(Board(**facts)), SITE, "P")


def test_a_torn_switch_is_none():
    assert look(Board(edge='{"slot": "a"')).edge == {}


# A `machine` that has a watchdog of at most 8 s, and no Timer(-1).
MACHINE = """
class Wdt:
    def __init__(self, timeout):
        if timeout > 8388: raise ValueError("timeout exceeds 8388")
        print("watchdog", timeout)
    def feed(self): print("fed")
class Timer:
    PERIODIC = 1
    def __init__(self, number):
        if number < 0: raise ValueError("id")
    def init(self, period, mode, callback):
        print("each", period)
        callback(self)
class Machine:
    WDT, Timer = Wdt, Timer
sys.modules["machine"] = Machine
print(json.dumps(facts()["watchdog"]))
keep(facts()["watchdog"])
"""


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"board": {"watchdog_s": 8}}, ["8", "watchdog 8000", "each 1000", "fed"]),
        ({"board": {"watchdog_s": 60}}, ["60"]),  # no agent can have started this one
        ({"board": {"watchdog_s": "x"}}, ["0", "watchdog 0", "each 1000", "fed"]),
        ({"agent": "ab" * 8}, ["0", "watchdog 0", "each 1000", "fed"]),
        ([], ["0", "watchdog 0", "each 1000", "fed"]),
    ],
)
def test_a_watchdog_that_runs_is_fed_on_the_board(tmp_path, there, said):
    """By MicroPython, with a machine that the test plays."""
    (tmp_path / "edge-b").mkdir()
    (tmp_path / "edge-b" / "device.json").write_text(json.dumps(there))
    code = repl.HELPERS + board_facts._PROBE.replace('"/edge-', f'"{tmp_path}/edge-') + MACHINE
    micropython = Path(sys.executable).with_name("micropython")
    done = subprocess.run([micropython, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == said, done.stderr


def test_no_watchdog_is_begun_where_none_can_run():
    for seconds, kept in ((0, []), (8, ["keep(8)"])):
        board = Board(watchdog=seconds)
        look(board)
        assert [code for code in board.ran if code.startswith("keep(")] == kept


READY = 'edge: ready {"agent": "abab", "boot": 3, "journal": "01020304"}'


def test_what_the_console_says():
    told = []
    lines = ["boot noise", READY, "edge: event not json", 'edge: acked {"records": 4}']
    assert flash.wait(Board(lines), 1, told.append).acked == 4
    assert told == ["agent abab is ready, boot 3, waiting for an ack"]
    for lines, message in (
        ([], "did not start within 1 s"),
        (["Traceback", "ValueError: x"], "did not start within 1 s; ValueError: x"),
        ([READY], "nothing was sensed, or nothing reached"),
        (
            [READY, 'edge: event {"name": "link-down", "level": "warning", "fields": ""}'],
            "link-down",
        ),
        ([READY, 'edge: failed {"error": "ModelError(1)"}'], r"agent-failed \(ModelError\(1\)\)"),
        (['edge: half {"error": "half-flashed"}'], "half-flashed"),
    ):
        with pytest.raises(RemoteError, match=message):
            flash.wait(Board(lines), 1, told.append)
