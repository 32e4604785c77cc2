"""MicroPython onto an empty board: esptool itself, against a boot loader as chips have one."""

import functools
import os
import pty
import re
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_agent.cli import main
from edge_agent.errors import ConfigError, StoreError
from edge_agent.tools import firmware, flash_cli, repl
from edge_agent.tools.ports import known

MOCK = Path(sys.executable).with_name("esp32-mock-bootloader")


def esp_image(path, chip_id, size=60_000):
    """An image as to its header; random bytes, so that compression cannot hide a fault."""
    header = bytearray(24)
    header[:4] = 0xE9, 1, 2, 0x20
    struct.pack_into("<H", header, 12, chip_id)
    path.write_bytes(bytes(header) + os.urandom(size))
    return str(path)


def uf2(path, family):
    block = struct.pack("<8I", 0x0A324655, 0x9E5D5157, 0x2000, 0x10000000, 256, 0, 1, family)
    path.write_bytes(block.ljust(508, b"\0") + struct.pack("<I", 0x0AB16F30))
    return str(path)


@pytest.fixture
def chip(request):
    """The serial port of a chip in its ROM boot loader; the parameter is its name."""
    process = subprocess.Popen(
        [MOCK, "run", "--pty", "--chip", request.param, "--timeout", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        for line in process.stdout:
            if found := re.search(r"/dev/pts/\d+", line):
                yield found[0]
                break
        else:
            pytest.fail("the boot loader did not start")
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def test_every_board_has_its_exact_command():
    assert firmware.command("esp32", "f.bin", "/dev/ttyUSB0") == (
        [
            "esptool",
            "--chip",
            "esp32",
            "--port",
            "/dev/ttyUSB0",
            "--baud",
            "460800",
            "write-flash",
            "0x1000",
            "f.bin",
        ]
    )
    assert firmware.command("esp32-c3", "f.bin", "P")[2:] == (
        ["esp32c3", "--port", "P", "--baud", "460800", "write-flash", "0x0", "f.bin"]
    )
    assert firmware.command("pico", "f.uf2", "P") == ["picotool", "load", "-v", "-x", "f.uf2"]
    for board, entry in known()["boards"].items():
        said = firmware.command_line(board, "P")
        assert ("emulator" in said) == (entry["firmware"] is None)
        assert "erase" not in said, board
    assert "BOOTSEL" in firmware.command_line("pico2", "P")
    assert "ESP32_GENERIC_C3.bin" in firmware.command_line("esp32-c3", "P")


def test_a_file_for_another_chip_is_refused(tmp_path):
    image = esp_image(tmp_path / "s3.bin", 9)
    firmware.check_file("esp32-s3", image)
    with pytest.raises(ConfigError, match=r"another chip \(id 9, esp32-c3 has 5\)"):
        firmware.check_file("esp32-c3", image)
    with pytest.raises(ConfigError, match="is no UF2 file"):
        firmware.check_file("pico", image)
    block = uf2(tmp_path / "pico2.uf2", 0xE48BFF59)
    firmware.check_file("pico2", block)
    with pytest.raises(ConfigError, match="family 0xe48bff59, pico has 0xe48bff56"):
        firmware.check_file("pico", block)
    with pytest.raises(ConfigError, match="no image for an Espressif chip"):
        firmware.check_file("esp32", block)
    with pytest.raises(ConfigError, match="No such file"):
        firmware.check_file("esp32", str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("chip", "board", "chip_id"),
    [("esp32c3", "esp32-c3", 5), ("esp32", "esp32", 0), ("esp32s3", "esp32-s3", 9)],
    indirect=["chip"],
)
def test_esptool_writes_and_verifies(chip, board, chip_id, tmp_path):
    said = []
    firmware.write(board, esp_image(tmp_path / "f.bin", chip_id), chip, said.append)
    assert said == ["$ " + " ".join(firmware.command(board, str(tmp_path / "f.bin"), chip))]


@pytest.mark.parametrize("chip", ["esp32s3"], indirect=True)
def test_another_chip_at_the_port_is_refused(chip, tmp_path):
    image = esp_image(tmp_path / "f.bin", 5)
    with pytest.raises(StoreError, match=r"esptool failed: .*ESP32-S3"):
        firmware.write("esp32-c3", image, chip, print)


def test_picotool_is_called_or_named(tmp_path, monkeypatch):
    """picotool needs a chip on USB: what it is called with is what can be tested."""
    file = uf2(tmp_path / "f.uf2", 0xE48BFF56)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"picotool: not found. sudo apt install picotool"):
        firmware.write("pico", file, "P", print)
    tool = tmp_path / "picotool"
    lines = ("#!/bin/sh", f'echo "$@" > {tmp_path}/called', "echo 'No device'")
    tool.write_text("\n".join([*lines, f"exit $(/bin/cat {tmp_path}/code)", ""]))
    tool.chmod(0o755)
    (tmp_path / "code").write_text("0")
    firmware.write("pico", file, "P", print)
    assert (tmp_path / "called").read_text().split() == ["load", "-v", "-x", file]
    (tmp_path / "code").write_text("7")
    with pytest.raises(StoreError, match="picotool failed: No device"):
        firmware.write("pico", file, "P", print)


@pytest.fixture
def silent():
    ours, theirs = pty.openpty()
    yield os.ttyname(theirs)
    os.close(ours)
    os.close(theirs)


def test_a_board_without_micropython_gets_the_command(silent, monkeypatch):
    monkeypatch.setattr(repl, "ATTEMPTS", 1)
    monkeypatch.setattr(flash_cli, "Repl", functools.partial(repl.Repl, seconds=0.5))
    args = SimpleNamespace(baud=115200, firmware=None, board="esp32-s3")
    with pytest.raises(repl.NoRepl) as found:
        flash_cli._open(args, silent)
    said = str(found.value)
    assert "nothing here answers as MicroPython does" in said
    assert f"esptool --chip esp32s3 --port {silent} --baud 460800 write-flash 0x0" in said


def test_words_of_the_command_line(tmp_path, capsys):
    assert main(["bundle", "--board", "toaster", "--out", str(tmp_path / "b")]) == 2
    assert "Known: esp32" in capsys.readouterr().err
    assert main(["flash", "--board", "pico", "--site", str(tmp_path / "south")]) == 2
    assert "edge-gateway enrol south --out south.json" in capsys.readouterr().err
