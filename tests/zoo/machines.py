"""Runs Python on MicroPython's stock firmware for QEMU's Cortex-M3 and 32-bit RISC-V.

    with Machine("m3", {"main.py": b"print(1)", "k.tflite": model}) as machine:
        print(machine.run("import main"))

The files lie in a ROMFS image that QEMU puts into the machine's memory beside the
firmware's own, as a board maps one from its flash; it is mounted at /rom. Python files are
compiled with mpy-cross first. QEMU counts instructions (-icount): one takes a nanosecond of
the machine's time, and `TICKS` reads a timer of it.

Needs tools/micropython.sh stock-m3.elf stock-rv32.elf mpy-cross.
"""

import functools
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / ".cache" / "micropython"

# Machine -> architecture for mpy-cross, native kernels, emulator, firmware, its arguments,
# where the image goes, instructions per tick, and code that defines ticks().
MACHINES = {
    "m3": (
        "armv7m",
        "qemu-system-arm",
        "stock-m3.elf",
        ("-machine", "mps2-an385"),
        0x21000000,
        40,
        # The first timer of the board, 25 MHz, counts down; nothing else uses it.
        "mem32[0x40000008] = mem32[0x40000004] = 0xFFFFFFFF\nmem32[0x40000000] = 1\n"
        "def ticks(): return 0xFFFFFFFF - mem32[0x40000004]\n",
    ),
    "rv32": (
        "rv32imc",
        "qemu-system-riscv32",
        "stock-rv32.elf",
        ("-machine", "virt", "-bios", "none"),
        0x84000000,
        100,
        "def ticks(): return mem32[0x0200BFF8]\n",
    ),
}


class MachineError(Exception):
    """The machine stopped, raised, or did not answer in time; with what it said."""


def available(name: str) -> "str | None":
    """None, or what is missing to run this machine."""
    _, emulator, firmware, *_ = MACHINES[name]
    if shutil.which(emulator) is None:
        return emulator
    for file in (firmware, "mpy-cross"):
        if not (BUILT / file).exists():
            return ".cache/micropython/" + file
    return None


def _number(n: int) -> bytes:
    """Seven bits a byte, the highest first, all but the last marked."""
    out = bytes([n & 127])
    while n > 127:
        n >>= 7
        out = bytes([128 | (n & 127)]) + out
    return out


def _record(kind: int, body: bytes) -> bytes:
    return _number(kind) + _number(len(body)) + body


def romfs(files: "dict[str, bytes]") -> bytes:
    """A ROMFS image of these paths."""

    def folder(prefix: str) -> bytes:
        out, seen = b"", set()
        for path in sorted(files):
            if not path.startswith(prefix):
                continue
            name, slash, _ = path[len(prefix) :].partition("/")
            if name in seen:
                continue
            seen.add(name)
            start = _number(len(name)) + name.encode()
            if slash:
                out += _record(4, start + folder(prefix + name + "/"))
            else:
                out += _record(5, start + _record(2, files[path]))
        return out

    body = folder("")
    return b"\xd2\xcd\x31" + _number(len(body)) + body


@functools.cache
def compiled(source: bytes, name: str, arch: str) -> bytes:
    """Bytecode of a Python file, with native code for `arch` where it asks for that."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "x.py"
        path.write_bytes(source)
        out = path.with_suffix(".mpy")
        command = [BUILT / "mpy-cross", "-march=" + arch, "-s", name, "-o", out, path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MachineError(name + ": " + done.stderr)
        return out.read_bytes()


def library(arch: str, native: bool = True) -> "dict[str, bytes]":
    """mpy_port.tflite as a board has it: compiled, with the native kernels if wanted."""
    files = {}
    for path in (ROOT / "mpy_port" / "tflite").rglob("*.py"):
        if path.name != "host_numpy.py":
            files[str(path.relative_to(ROOT))] = path.read_bytes()
    files["mpy_port/__init__.py"] = b""
    if native:
        name = "mpy_port/tflite/natmod/kernels_%s.mpy" % arch
        files[name] = (ROOT / name).read_bytes()
    return files


class Machine:
    """One running emulator; see the module. `limit`: seconds a `run` may take."""

    def __init__(self, name: str, files: "dict[str, bytes]", limit: float = 120):
        self.arch, emulator, firmware, arguments, base, self.per_tick, ticks = MACHINES[name]
        self.limit = limit
        rom = {}
        for path, data in files.items():
            if path.endswith(".py"):
                data, path = compiled(data, path, self.arch), path[:-3] + ".mpy"
            rom[path] = data
        image = romfs(rom)
        self._place = tempfile.TemporaryDirectory()
        where = Path(self._place.name) / "rom"
        where.write_bytes(image)
        command = [
            emulator, *arguments, "-icount", "shift=0", "-nographic", "-monitor", "none",
            "-serial", "stdio", "-semihosting", "-kernel", BUILT / firmware,
            "-device", "loader,file=%s,addr=0x%x,force-raw=on" % (where, base),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            self._send(b"\r\x01")
            self._until(b"raw REPL; CTRL-B to exit\r\n>")
            self.run(
                "import sys, vfs, uctypes\nfrom machine import mem32\n"
                "vfs.mount(vfs.VfsRom(uctypes.bytearray_at(0x%x, %d)), '/rom')\n"
                "sys.path.insert(0, '/rom')\n" % (base, len(image)) + ticks
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._place.cleanup()

    def _send(self, data: bytes) -> None:
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def _until(self, mark: bytes) -> bytes:
        end = time.monotonic() + self.limit
        out = self._process.stdout.fileno()
        said = b""
        while not said.endswith(mark):
            ready, _, _ = select.select([out], [], [], max(0.0, end - time.monotonic()))
            more = os.read(out, 4096) if ready else b""
            if not more:
                why = "stopped" if ready else "no answer in %d s" % self.limit
                raise MachineError(why + ": " + said[-500:].decode("utf-8", "replace"))
            said += more
        return said[: -len(mark)]

    def run(self, code: str) -> str:
        """What the code prints. MachineError with the traceback when it raises."""
        self._send(code.encode() + b"\x04")
        said = self._until(b"\x04>")
        if not said.startswith(b"OK"):
            raise MachineError("not understood: " + repr(said))
        out, _, error = said[2:].partition(b"\x04")
        if error:
            raise MachineError(out.decode() + error.decode())
        return out.decode().replace("\r\n", "\n")
