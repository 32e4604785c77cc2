"""The emulated boards themselves, without the agent: flash that is NOR, a fault knob that cuts
where it says, ROMFS that is used where it lies, reset, sleep, identity, and both links."""

import contextlib
import hashlib
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from harness.machine import (
    CUT,
    DEEPSLEEP,
    FAILED,
    FILES_BYTES,
    KINDS,
    RESET,
    ROMFS_AT,
    WATCHDOG,
    Machine,
    MachineError,
)

pytestmark = pytest.mark.fast

HEAP = 110 * 1024
PAGE, BLOCK = 256, 4096
LAST = FILES_BYTES - BLOCK  # the last block of the file system, which a young one has not used
MPY_CROSS = Path(__file__).resolve().parents[1] / ".cache" / "micropython" / "mpy-cross"


@pytest.fixture(params=KINDS)
def machine(request, tmp_path):
    with Machine(request.param, tmp_path / request.param) as made:
        yield made


def ask(machine, code, **options):
    """What `code` prints on a machine that is started for it, and then without power."""
    machine.start(options=options)
    try:
        with machine.repl() as repl:
            return repl.exec(code).strip()
    finally:
        machine.kill()


def end(machine, code, **options):
    """The exit status of a machine that `code` ends."""
    machine.start(options=options)
    with machine.repl() as repl, contextlib.suppress(OSError):
        repl.go(code)  # the machine may end before it has said that it understood
    return machine.wait()


def test_it_boots_like_a_stock_board(machine):
    heap, files, frozen, path = ask(
        machine,
        """
import gc, os, sys, asyncio, select, time, machine, cryptolib, hashlib, binascii, json, vfs
gc.collect()
print(gc.mem_free() + gc.mem_alloc())
print(os.listdir("/"), os.statvfs("/")[0] * os.statvfs("/")[2])
try:
    import edge_agent
except ImportError:
    print("no agent")
print(sys.path)
""",
    ).split("\n")
    # The collector keeps two bits for every 16 bytes and rounds down.
    assert 0.97 * HEAP < int(heap) < HEAP
    assert files == f"[] {FILES_BYTES}"
    assert frozen == "no agent"
    assert "/lib" in path


def test_sha256_and_aes_are_those_of_everybody(machine):
    digest, block = ask(
        machine,
        """
import hashlib, cryptolib
print(hashlib.sha256(b"edge").digest().hex())
print(cryptolib.aes(bytes(range(16)), 1).encrypt(bytes(range(0, 256, 17))).hex())
""",
    ).split()
    assert digest == hashlib.sha256(b"edge").hexdigest()
    # FIPS 197, appendix C.1.
    assert block == "69c4e0d86a7b0430d8cdb78070b4c55a"


def test_flash_is_nor(machine):
    out = ask(
        machine,
        f"""
import qemu
flash = qemu.flash()
last = {LAST // BLOCK}
print(flash.ioctl(4, 0), flash.ioctl(5, 0))
flash.ioctl(6, last)
before = qemu.stats()
flash.writeblocks(last, b"\\xf0" * 8, 8)
flash.writeblocks(last, b"\\x30" * 8, 8)
for data in (b"\\xf0" * 8, b"\\x31" * 8):
    try:
        flash.writeblocks(last, data, 8)
    except OSError as error:
        print("refused", error.errno)
after = qemu.stats()
print([b - a for a, b in zip(before, after)])
data = bytearray(24)
flash.readblocks(last, data, 0)
print(data.hex())
flash.ioctl(6, last)
flash.readblocks(last, data, 0)
print(data.hex())
for block, offset in ((last + 1, 0), (last, 4093), (-1, 0)):
    try:
        flash.readblocks(block, data, offset)
    except OSError as error:
        print("outside", error.errno)
""",
    ).split("\n")
    assert out == [
        f"{FILES_BYTES // BLOCK} {BLOCK}",
        "refused 5",
        "refused 5",
        "[2, 16, 0, 2]",
        "ff" * 8 + "30" * 8 + "ff" * 8,
        "ff" * 24,
        *["outside 22"] * 3,
    ]


def test_the_knob_cuts_where_it_says(machine):
    """A page program and a block erase, each cut before, inside and after; seen from outside."""
    old = bytes(range(PAGE)) * (BLOCK // PAGE)
    new = bytes(PAGE)
    for torn, done in ((0, 0), (1, PAGE // 2), (2, PAGE)):
        prepare = f"import qemu; qemu.poke({LAST}, bytes(range(256)) * 16)"
        write = f"qemu.cut(0, {torn}); qemu.flash().writeblocks({LAST // BLOCK}, bytes(256), 512)"
        assert end(machine, f"{prepare}\n{write}") == CUT
        found = machine.save()[LAST : LAST + BLOCK]
        assert found == old[:512] + new[:done] + old[512 + done :]
    for torn, done in ((0, 0), (1, BLOCK // 2), (2, BLOCK)):
        erase = f"qemu.cut(0, {torn}); qemu.flash().ioctl(6, {LAST // BLOCK})"
        assert end(machine, f"{prepare}\n{erase}") == CUT
        found = machine.save()[LAST : LAST + BLOCK]
        assert found == b"\xff" * done + old[done:]


def test_the_knob_on_the_command_line_counts_from_power_on(machine):
    write = "print(qemu.stats())\nwith open('/f', 'w') as f: f.write('x')"
    counts = re.search(r"\((\d+), \d+, (\d+), ", ask(machine, "import qemu\nprint(qemu.stats())"))
    formatted = int(counts[1]) + int(counts[2])
    assert formatted > 0
    assert ask(machine, "import qemu\n" + write, cut=1000).startswith("(0, 0, 0, 0)")
    assert end(machine, "import qemu\n" + write.replace("f'", "g'"), cut=0, torn=0) == CUT
    assert ask(machine, "import os\nprint(sorted(os.listdir('/')))") == "['f']"
    machine.blank()
    machine.start(options={"cut": formatted - 1})
    assert machine.wait() == CUT


@pytest.mark.parametrize("torn", [0, 1, 2])
def test_littlefs_survives_a_cut_at_every_operation(machine, torn, tmp_path):
    """Four records, each flushed: whatever the moment, those whose flush returned are there."""
    burst = """
import qemu
f = open("/log", "ab")
qemu.cut(%d, %d)
for i in range(4):
    f.write(b"%%0200d" %% i)
    f.flush()
    qemu.note(b"%%d\\n" %% i)
qemu.exit(1)
"""
    blank = machine.save()
    status, operation = CUT, 0
    while status == CUT:
        machine.restore(blank)
        notes = tmp_path / f"notes-{operation}"
        status = end(machine, burst % (operation, torn), ledger=notes)
        flushed = len(notes.read_text().split()) if notes.exists() else 0
        read = "try: print(open('/log').read())\nexcept OSError: print('')"
        found = re.findall(".{200}", ask(machine, read))
        assert found == [f"{i:0200}" for i in range(len(found))]
        assert flushed <= len(found) <= flushed + 1, (operation, torn)
        operation += 1
    assert status == 1
    assert operation > 8


def test_what_was_flushed_survives_sigkill(machine):
    machine.start()
    with machine.repl() as repl:
        repl.go("""
n = 0
while True:
    with open("/n", "w") as f: f.write(str(n))
    print(n)
    n += 1
""")
        machine.until("\n20\n")
    machine.kill()
    said = int(re.findall(r"(?<=\n)(\d+)(?=\n)", machine.said())[-1])
    assert int(ask(machine, "print(open('/n').read())")) in (said, said + 1)


def test_a_corrupt_file_system_is_left_alone(machine):
    ask(machine, "with open('/f', 'w') as f: f.write('x')")
    image = bytearray(machine.save())
    image[0 : 2 * BLOCK] = bytes(2 * BLOCK)
    machine.restore(bytes(image))
    assert "f" not in ask(machine, "import os; print(os.listdir('/'))")
    assert "corrupt" in machine.said()
    assert machine.save()[: 2 * BLOCK] == bytes(2 * BLOCK)
    make = "import qemu, vfs\nvfs.VfsLfs2.mkfs(qemu.flash(), progsize=qemu.PROGSIZE)"
    ask(machine, make)
    assert ask(machine, "import os; print(os.listdir('/'))") == "[]"


SOURCE = """
import micropython

TABLE = %r

@micropython.viper
def total(data: ptr8, n: int) -> int:
    s = 0
    for i in range(n):
        s += data[i]
    return s
"""


def test_romfs_is_deployed_by_mpremote_and_used_where_it_lies(machine, tmp_path):
    march = {"rv32": "rv32imc", "m3": "armv7m"}[machine.kind]
    lib = tmp_path / "image" / "lib"
    lib.mkdir(parents=True)
    (tmp_path / "image" / "model.bin").write_bytes(bytes(range(200)))
    (tmp_path / "thing.py").write_text(SOURCE % (bytes(range(256)) * 4))
    subprocess.run(
        [MPY_CROSS, f"-march={march}", tmp_path / "thing.py", "-o", lib / "thing.mpy"], check=True
    )
    machine.start()
    mpremote = [shutil.which("mpremote", path=str(Path(sys.executable).parent)) or "mpremote"]
    subprocess.run(
        [*mpremote, "connect", machine.pty, "romfs", "deploy", tmp_path / "image"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    machine.kill()
    assert machine.save()[ROMFS_AT : ROMFS_AT + 3] == b"\xd2\xcd1"
    sums, apart, romfs, cost = ask(
        machine,
        """
import gc, vfs
from uctypes import addressof
gc.collect()
before = gc.mem_alloc()
import thing
gc.collect()
cost = gc.mem_alloc() - before
print(thing.total(thing.TABLE, 1024), sum(thing.TABLE))
rom = addressof(memoryview(vfs.rom_ioctl(2, 0)))
print(addressof(memoryview(open("/rom/model.bin", "rb"))) - rom, addressof(thing.TABLE) - rom)
print(len(memoryview(vfs.rom_ioctl(2, 0))))
print(cost)
""",
    ).split("\n")
    assert sums == "130560 130560"
    size = int(romfs)
    assert all(0 < int(offset) < size for offset in apart.split())
    assert int(cost) < 1024  # TABLE alone has 1024 bytes


def test_reset_sleep_and_watchdog_keep_what_the_rtc_keeps(machine):
    look = """
import machine, time
print(machine.reset_cause(), machine.wake_reason(), machine.RTC().memory(), time.time())
"""
    keep = "import machine; machine.RTC().memory(b'kept'); "
    cause, wake, memory, since = ask(machine, look).split()
    assert (cause, wake, memory) == ("1", "0", "b''")
    start = int(since)

    assert end(machine, keep + "machine.reset()") == RESET
    assert ask(machine, look).split()[:3] == ["2", "0", "b'kept'"]
    assert ask(machine, look).split()[:3] == ["1", "0", "b''"]  # the kill above was a cut

    assert end(machine, keep + "machine.deepsleep(86400000)") == DEEPSLEEP
    assert machine.sleep_ms() == 86400000
    cause, wake, memory, since = ask(machine, look).split()
    assert (cause, wake, memory) == ("4", "4", "b'kept'")
    assert 86400 <= int(since) - start < 86460

    assert end(machine, keep + "machine.deepsleep(86400000)") == DEEPSLEEP
    assert 60 <= int(ask(machine, look, slept=60000).split()[3]) - start < 120
    assert end(machine, keep + "machine.deepsleep(1)") == DEEPSLEEP
    assert ask(machine, look, cold=1).split()[:3] == ["1", "0", "b''"]

    assert end(machine, keep + "w = machine.WDT(timeout=200)\nwhile True: pass") == WATCHDOG
    assert ask(machine, look).split()[:3] == ["3", "0", "b'kept'"]


def test_a_fault_is_an_end_too(machine):
    assert end(machine, "import machine; machine.mem32[0xf0000000]") == FAILED
    assert re.search("fault", machine.said())


def test_no_two_machines_are_the_same_unless_they_are_clones(machine, tmp_path):
    look = "import machine, os; print(machine.unique_id().hex(), os.urandom(16).hex())"
    first = ask(machine, look).split()
    again = ask(machine, look).split()
    with Machine(machine.kind, tmp_path / "other") as other:
        second = ask(other, look).split()
        other.restore(machine.save())
        clone = ask(other, look).split()
        named = ask(other, look, id="00112233445566aa").split()
    assert first[0] == again[0] == clone[0] != second[0]
    assert named[0] == "00112233445566aa"
    assert len({run[1] for run in (first, again, second, clone)}) == 4
    seeded = [ask(machine, look, seed=seed).split()[1] for seed in ("a", "a", "b")]
    assert seeded[0] == seeded[1] != seeded[2]


def test_knobs_of_size_and_start(machine):
    look = "import gc, os, time; print(gc.mem_free() // 1024, os.statvfs('/')[2], time.time())"
    machine.start(options={"main": 0})
    with machine.repl() as repl:
        repl.put("/main.py", b"print('main ran')\n")
    machine.kill()
    ask(machine, "pass", main=0)
    assert "main ran" not in machine.said()
    machine.start()
    machine.until("main ran")
    machine.kill()
    machine.blank()
    utc = 1_800_000_000
    free, blocks, now = (int(x) for x in ask(machine, look, heap=64, fs=128, utc=utc).split())
    assert 40 < free < 64
    assert blocks == 128 * 1024 // BLOCK
    epoch = {"rv32": 946684800, "m3": 0}[machine.kind]  # 2000 as esp32, 1970 as rp2
    assert 0 <= now + epoch - utc < 60


class Echo:
    """Sends back what it gets, on every connection."""

    def __init__(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while data := client.recv(4096):
                client.sendall(data)
        except OSError:
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.close()


def test_the_serial_line_carries_every_byte(machine):
    with Echo() as echo:
        machine.start(line=echo.port)
        with machine.repl() as repl:
            out = repl.exec("""
import machine, select
line = machine.UART(1, 115200, timeout=2000, rxbuf=1024)
data = bytes(range(256)) * 16
back = b""
for i in range(0, len(data), 512):
    line.write(data[i:i + 512])
    back += line.read(512)
print(back == data, line.any(), machine.UART(1, timeout=0).read(1))
poll = select.poll()
poll.register(line, select.POLLIN)
print(poll.poll(20))
line.write(b"x")
print(len(poll.poll(2000)))
""")
    assert out.split("\n")[:3] == ["True 0 None", "[]", "1"]


def test_sockets_and_a_pulled_cable(tmp_path):
    with Echo() as echo, Machine("rv32", tmp_path / "rv32") as machine:
        machine.start(net=echo.port)
        with machine.repl() as repl:
            assert "b'over the network'" in repl.exec("""
import network, socket, time
lan = network.LAN()
lan.active(True)
def wait(up):
    end = time.ticks_add(time.ticks_ms(), 5000)
    while lan.isconnected() != up and time.ticks_diff(end, time.ticks_ms()) > 0:
        time.sleep_ms(10)
    print(lan.isconnected())
wait(True)
s = socket.socket()
s.settimeout(5)
s.connect(("10.0.2.100", 1883))
s.write(b"over the network")
print(s.read(16))
""")
            machine.qmp("set_link", name="nic", up=False)
            assert repl.exec("wait(False)").strip() == "False"
            with pytest.raises(MachineError, match="OSError"):
                repl.exec("s.settimeout(0.5)\ns.write(b'x')\ns.read(1)")
            machine.qmp("set_link", name="nic", up=True)
            assert repl.exec("wait(True)").strip() == "True"
            assert repl.exec("s.settimeout(10)\nprint(s.read(1))").strip() == "b'x'"
