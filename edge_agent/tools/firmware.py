"""MicroPython onto an empty board: the exact command, and on request its execution.

esptool writes Espressif chips over the serial port, picotool RP2 chips in their boot loader over
USB. Only the firmware's own part of the flash is written, never all of it erased, so that a board
with a journal keeps it. The file is looked at first: an image says for which chip it is.
"""

import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_agent.errors import ConfigError, StoreError
from edge_agent.tools.freight import about
from edge_agent.tools.ports import check

_ESP_MAGIC, _ESP_CHIP_AT = 0xE9, 12  # esp_image_header_t: magic, and chip_id as u16
_UF2_START, _UF2_SECOND = 0x0A324655, 0x9E5D5157
_PAGE = "https://micropython.org/download/"


def command(board: str, file: str, device: str) -> "list[str]":
    """The command that writes a firmware file. ConfigError for boards that have none."""
    entry = _entry(board)
    if entry["tool"] == "esptool":
        offset = f"{entry['offset']:#x}"
        words = ["esptool", "--chip", entry["chip"], "--port", device, "--baud", "460800"]
        return [*words, "write-flash", offset, file]
    return ["picotool", "load", "-v", "-x", file]


def command_line(board: str, device: str) -> str:
    """The same for people, and where the file is from; a sentence for boards without."""
    try:
        entry = _entry(board)
    except ConfigError as error:
        return error.what
    kind = ".bin" if entry["tool"] == "esptool" else ".uf2"
    text = " ".join(command(board, entry["page"] + kind, device))
    if entry["tool"] == "picotool":
        text += "\n  (hold BOOTSEL while plugging it in)"
    return f"{text}\n  with the file from {_PAGE}{entry['page']}/, or mpflash flash"


def _entry(board: str) -> "dict[str, Any]":
    entry = about(board)["firmware"]
    if entry is None:
        raise ConfigError("its firmware is the emulator's business", f"--board {board}")
    return dict(entry)


def check_file(board: str, path: str) -> None:
    """ConfigError when the file is not firmware for this board."""
    entry = _entry(board)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(error.strerror or str(error), f"--firmware {path}")
    fix = f"Take the file from {_PAGE}{entry['page']}/"
    if entry["tool"] == "esptool":
        if len(data) < 32 or data[0] != _ESP_MAGIC:
            raise ConfigError("is no image for an Espressif chip", f"--firmware {path}", fix)
        (chip,) = struct.unpack_from("<H", data, _ESP_CHIP_AT)
        if chip != entry["chip_id"]:
            raise ConfigError(
                f"is for another chip (id {chip}, {board} has {entry['chip_id']})",
                f"--firmware {path}",
                fix,
            )
        return
    if len(data) < 512 or struct.unpack_from("<II", data) != (_UF2_START, _UF2_SECOND):
        raise ConfigError("is no UF2 file", f"--firmware {path}", fix)
    (family,) = struct.unpack_from("<I", data, 28)
    if family != entry["family"]:
        raise ConfigError(
            f"is for another chip (family {family:#x}, {board} has {entry['family']:#x})",
            f"--firmware {path}",
            fix,
        )


def write(board: str, path: str, device: str, say: "Callable[[str], None]") -> None:
    """Write firmware onto a board. ConfigError, StoreError with the tool's last words."""
    check_file(board, path)
    words = command(board, path, device)
    say("$ " + " ".join(words))
    tool = [sys.executable, "-m", "esptool"] if words[0] == "esptool" else [_found(words[0])]
    if words[0] == "esptool":
        check(device)
    whole = [*tool, *words[1:]]
    done = subprocess.run(whole, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        raise StoreError(
            f"{words[0]} failed: " + "".join(last),
            device,
            "Hold the board's BOOT button while it starts, and try again",
        )


def _found(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        raise ConfigError("not found", tool, f"sudo apt install {tool}")
    return found
