"""One emulated board: its power, its flash, its console and its lines.

    machine = Machine("rv32", folder)
    machine.start(line=box.port)          # power on; the firmware is the one of boards/
    with machine.repl() as repl: repl.exec("print(1)")
    machine.kill()                        # SIGKILL: the power is gone, between any two steps
    machine.start(options={"cut": 17, "torn": 1}); machine.wait() == CUT

Theory of operation. The machine is a QEMU process. What lasts is in `folder`: flash.img is
its flash, console.log what it printed, ledger/ what it noted with `qemu.note`, a file for each
power-on. QEMU writes both at once, so they hold what was said before a SIGKILL, and nobody
needs to read along.
The serial line machine.UART(1) is the modem: it goes to a LinkBox.

How a machine ends is in QEMU's exit status: see the constants. `run` plays the power
supply: it starts the machine again after a reset, and after deep sleep when it is to wake.

SIGKILL loses nothing that QEMU wrote, so flash.img is as the flash was at that instant; the
knob `cut` of the firmware ends the machine inside of a flash operation.
"""

import contextlib
import json
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpremote.transport import TransportError, TransportExecError
from mpremote.transport_serial import SerialTransport

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / ".cache" / "micropython"
RELAY = Path(__file__).with_name("relay.py")

FAILED, RESET, DEEPSLEEP, CUT, WATCHDOG = 70, 75, 76, 77, 78
KILLED = -signal.SIGKILL
FLASH_BYTES = 0x400000
FILES_BYTES = 0x200000  # of it, the part with littlefs, at its beginning
ROMFS_AT, ROMFS_BYTES = 0x200000, 0x100000
SLEEP_AT = 0x300008

KINDS = ("rv32", "m3")
ARCH = {"rv32": "rv32imc", "m3": "armv7m"}
FIRMWARE = {"rv32": "qemu-rv32.elf", "m3": "qemu-m3.elf"}


class MachineError(AssertionError):
    """The machine did not do as it should; with the end of its console."""


class Machine:
    def __init__(self, kind: str, folder: Path) -> None:
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is none of {KINDS}")
        self.kind = kind
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.flash = folder / "flash.img"
        self.console = folder / "console.log"
        self.ledger = folder / "ledger"
        self.ledger.mkdir(exist_ok=True)
        self._monitor = folder / "qmp"
        self.process: subprocess.Popen[str] | None = None
        self.pty = self.line_pty = ""
        self.exits: list[int] = []
        if not self.flash.exists():
            self.blank()

    # -- flash ----------------------------------------------------------------------------

    def blank(self) -> None:
        """Flash as it leaves the factory."""
        self._write_flash(b"\xff" * FLASH_BYTES)

    def save(self) -> bytes:
        with self.flash.open("rb") as file:
            return file.read(FLASH_BYTES)

    def restore(self, image: bytes) -> None:
        assert len(image) == FLASH_BYTES
        self._write_flash(image)

    def _write_flash(self, data: bytes) -> None:
        assert not self.running
        with self.flash.open("wb") as file:
            file.write(data)
            if self.kind == "rv32":
                file.truncate(32 << 20)  # the size that QEMU's board wants

    # -- power ----------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def command(
        self,
        line: "int | str | None" = None,
        net: "int | None" = None,
        options: "dict[str, Any] | None" = None,
        icount: str = "",
        plugin: str = "",
    ) -> "list[str]":
        """QEMU's command line. line: port of the LinkBox behind UART(1), or "pty" for a serial
        port at line_pty. net: port of what the network card reaches as 10.0.2.100:1883, and
        nothing else. icount, plugin: as QEMU's options of these names."""
        page = self.ledger / f"{len(list(self.ledger.iterdir())):05d}.txt"
        words: dict[str, Any] = {"ledger": page, **(options or {})}
        if self.kind == "m3":
            words["flash"] = self.flash
        args = "".join(f",arg={name}={value}" for name, value in words.items())
        serial = {
            "console": f"pty,id=console,logfile={self.console},logappend=on",
            "line": "null,id=line",
        }
        if line == "pty":
            serial["line"] = "pty,id=line"
        elif line:
            serial["line"] = f"socket,id=line,host=127.0.0.1,port={line},reconnect=1,nodelay=on"
        command = []
        if self.kind == "rv32":
            command += ["qemu-system-riscv32", "-M", "virt", "-m", "16M"]
            command += ["-drive", f"if=pflash,unit=1,format=raw,file={self.flash}"]
            # With a drive in that place QEMU waits for firmware of its own; -bios is ours.
            command += ["-bios", str(BUILT / FIRMWARE["rv32"])]
        else:
            command += ["qemu-system-arm", "-M", "mps2-an385"]
            command += ["-kernel", str(BUILT / FIRMWARE["m3"])]
        for text in serial.values():
            command += ["-chardev", text]
        command += ["-serial", "chardev:console"]
        if self.kind == "rv32":
            command += ["-device", "pci-serial,chardev=line"]
        else:
            command += ["-serial", "chardev:line"]
        if net is not None:
            relay = f"{sys.executable} {RELAY} {net}"
            command += [
                "-netdev",
                f"user,id=nic,restrict=on,guestfwd=tcp:10.0.2.100:1883-cmd:{relay}",
                "-device",
                "virtio-net-device,netdev=nic",
            ]
        command += ["-display", "none", "-monitor", "none"]
        command += ["-qmp", f"unix:{self._monitor},server=on,wait=off"]
        command += ["-semihosting-config", "enable=on,target=native,arg=board" + args]
        if icount:
            command += ["-icount", icount]
        if plugin:
            command += ["-plugin", plugin]
        return command

    def start(self, **how: Any) -> "Machine":
        """Power on. Arguments as of `command`."""
        assert not self.running, "it runs already"
        self.process = subprocess.Popen(
            self.command(**how), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        said, ptys = "", {}
        wanted = 2 if how.get("line") == "pty" else 1
        assert self.process.stdout is not None
        while True:
            text = self.process.stdout.readline()
            said += text
            if not text:
                self.process.wait()
                raise MachineError(f"{self.kind} did not start:\n{said}")
            found = re.search(r"redirected to (/dev/pts/\d+) \(label (\w+)\)", text)
            if found:
                ptys[found[2]] = found[1]
            if len(ptys) == wanted:
                self.pty, self.line_pty = ptys["console"], ptys.get("line", "")
                return self

    def kill(self) -> int:
        """SIGKILL; the exit status, should it have ended before."""
        process = self.process
        if process is None:
            return KILLED
        process.kill()
        return self._ended(process)

    def wait(self, seconds: float = 30) -> int:
        """The exit status, once it has ended by itself."""
        assert self.process is not None
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise MachineError(f"{self.kind} goes on after {seconds} s\n{self.story()}") from None
        return self._ended(self.process)

    def _ended(self, process: "subprocess.Popen[str]") -> int:
        status = process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self.process = None
        self.exits.append(status)
        return status

    def run(self, until: float, **how: Any) -> int:
        """Play the power supply until it ends otherwise than by reset, sleep or watchdog, or
        until the time `until` (monotonic); the last exit status, KILLED at the latest time."""
        while True:
            if not self.running:
                self.start(**how)
            left = until - time.monotonic()
            try:
                assert self.process is not None
                self.process.wait(max(0.0, left))
            except subprocess.TimeoutExpired:
                return self.kill()
            status = self._ended(self.process)
            if status == DEEPSLEEP:
                time.sleep(min(self.sleep_ms() / 1000, max(0.0, until - time.monotonic())))
            elif status not in (RESET, WATCHDOG):
                return status

    def sleep_ms(self) -> int:
        """How long the machine wanted to sleep: what its RTC remembers."""
        with self.flash.open("rb") as file:
            file.seek(SLEEP_AT)
            return int(struct.unpack("<I", file.read(4))[0])

    # -- monitor --------------------------------------------------------------------------

    def qmp(self, command: str, **arguments: Any) -> Any:
        """A command to QEMU itself, as set_link(name="nic", up=False), stop, cont."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(self._monitor))
            file = sock.makefile("rw")
            file.readline()
            answer: dict[str, Any] = {}
            for request in (
                {"execute": "qmp_capabilities"},
                {"execute": command, "arguments": arguments},
            ):
                file.write(json.dumps(request) + "\n")
                file.flush()
                answer = {"event": ""}
                while "event" in answer:
                    answer = json.loads(file.readline())
            if "error" in answer:
                raise MachineError(f"QMP {command}: {answer['error']}")
            return answer["return"]

    # -- console --------------------------------------------------------------------------

    def said(self) -> str:
        """All that was ever printed."""
        if not self.console.exists():
            return ""
        return self.console.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")

    def until(self, text: str, seconds: float = 20, after: int = 0) -> None:
        """Wait until the console said `text`, after that many characters."""
        end = time.monotonic() + seconds
        while text not in self.said()[after:]:
            if not self.running or time.monotonic() > end:
                raise MachineError(f"{self.kind} did not say {text!r}\n{self.story()}")
            time.sleep(0.01)

    def story(self) -> str:
        status = self.process.poll() if self.process else None
        return f"exits {self.exits} {status}; console:\n{self.said()[-2000:]}"

    @contextlib.contextmanager
    def repl(self) -> "Iterator[Repl]":
        """The raw REPL over the serial line, as mpremote drives it."""
        repl = Repl(self)
        try:
            yield repl
        finally:
            repl.close()

    def close(self) -> None:
        if self.running:
            self.kill()

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Repl:
    """mpremote's transport on the console; errors are MachineErrors. machine: has pty, story."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self._transport = SerialTransport(machine.pty, 115200)
        try:
            self._transport.enter_raw_repl(soft_reset=False, timeout_overall=15)
        except TransportError as error:
            self._transport.close()
            raise MachineError(f"no REPL: {error}\n{machine.story()}") from None

    def exec(self, code: str, seconds: float = 60) -> str:
        """What the code prints."""
        transport = self._transport
        try:
            transport.exec_raw_no_follow(code)
            out, error = transport.follow(seconds)
        except (TransportError, OSError) as trouble:
            raise MachineError(f"{trouble!r}\n{self.machine.story()}") from None
        if error:
            raise MachineError(error.decode("utf-8", "replace"))
        return str(out.decode("utf-8", "replace")).replace("\r\n", "\n")

    def go(self, code: str) -> None:
        """Start code and do not wait: the machine may end before it does."""
        self._transport.exec_raw_no_follow(code)

    def put(self, path: str, data: bytes) -> None:
        try:
            self._transport.fs_writefile(path, data)
        except (TransportError, TransportExecError, OSError) as error:
            raise MachineError(f"{path}: {error}\n{self.machine.story()}") from None

    def get(self, path: str) -> bytes:
        try:
            return bytes(self._transport.fs_readfile(path))
        except (TransportError, TransportExecError, OSError) as error:
            raise MachineError(f"{path}: {error}") from None

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._transport.close()


def missing() -> "list[str]":
    """What is not there of emulators and firmware."""
    tools = ("qemu-system-riscv32", "qemu-system-arm", "/usr/sbin/mosquitto")
    lack = [tool for tool in tools if shutil.which(tool) is None]
    return lack + [name for name in FIRMWARE.values() if not (BUILT / name).exists()]
