"""MicroPython's own firmware, built by `make micropython`, starts on QEMU's boards."""

import subprocess
import time
from pathlib import Path

import pytest

BUILT = Path(__file__).resolve().parents[2] / ".cache" / "micropython"


@pytest.mark.parametrize(
    ("firmware", "machine", "says"),
    [
        ("stock-m3.elf", ["qemu-system-arm", "-M", "mps2-an385", "-kernel"], "Cortex-M3"),
        ("stock-rv32.elf", ["qemu-system-riscv32", "-M", "virt", "-bios"], "rv32imac"),
    ],
)
def test_stock_firmware_boots(firmware: str, machine: list[str], says: str) -> None:
    image = BUILT / firmware
    quiet = ["-nographic", "-monitor", "none", "-semihosting"]
    command = [*machine, str(image), *quiet]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdin and qemu.stdout
        try:
            said = b""
            give_up = time.monotonic() + 20
            while b">>>" not in said and time.monotonic() < give_up:
                said += qemu.stdout.read1(1000)
            qemu.stdin.write(b"import sys; print(sys.maxsize, sys.implementation[2])\r")
            qemu.stdin.flush()
            while b"2147483647" not in said and time.monotonic() < give_up:
                said += qemu.stdout.read1(1000)
        finally:
            qemu.kill()
    assert says in said.decode()
    assert b"2147483647" in said
