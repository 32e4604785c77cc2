"""What a loaded model costs in heap on MicroPython, and that its weights stay where they are."""

import subprocess
import sys
from pathlib import Path

from toolchain import MICROPYTHON, need

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.zoo import networks  # noqa: E402

# Prints heap bytes held by a model beyond its file, its arena, and part of its output.
SCRIPT = """
import gc, sys
sys.path.insert(0, %r)
from mpy_port.tflite import Interpreter
def held(model):
    gc.collect()
    before = gc.mem_alloc()
    loaded = Interpreter(model, tier="python")
    gc.collect()
    return gc.mem_alloc() - before, loaded
data = open(%r, "rb").read()
held(data)  # modules are imported once
cost, loaded = held(data)
out = loaded.run(bytes(loaded.inputs[0].size))[:8].hex()
print(cost, loaded.arena_bytes, out)
import vfs
vfs.mount(vfs.VfsRom(memoryview(open(%r, "rb").read())), "/rom")
del loaded
cost, loaded = held("/rom/m.tflite")
out = loaded.run(bytes(loaded.inputs[0].size))[:8].hex()
print(cost, loaded.arena_bytes, out)
"""


def varuint(n):
    """ROMFS number: seven bits a byte, the highest first, all but the last marked."""
    out = bytes([n & 127])
    while n > 127:
        n >>= 7
        out = bytes([128 | (n & 127)]) + out
    return out


def romfs(name, data):
    """A ROMFS image with one file, as MicroPython maps it from flash."""
    body = varuint(2) + varuint(len(data)) + data
    file = varuint(len(name)) + name + body
    record = varuint(5) + varuint(len(file)) + file
    return b"\xd2\xcd\x31" + varuint(len(record)) + record


def measure(name, folder):
    """[heap bytes, arena bytes, output] of a network read from a file, then from ROMFS."""
    model, _ = networks.build(name)
    (folder / "m.tflite").write_bytes(model)
    (folder / "m.rom").write_bytes(romfs(b"m.tflite", model))
    script = SCRIPT % (str(ROOT), str(folder / "m.tflite"), str(folder / "m.rom"))
    command = [need(MICROPYTHON), "-X", "heapsize=8M", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 2
    return len(model), [[int(cost), int(arena), out] for cost, arena, out in rows]


def test_weights_stay_in_the_model(tmp_path):
    size, rows = measure("autoencoder", tmp_path)
    assert size > 270_000
    assert rows[0][2] == rows[1][2]
    for cost, arena, _ in rows:
        assert arena == 768
        assert 7_000 < cost < 20_000  # biases and multipliers alone are 7 KB


def test_heap_of_a_keyword_spotter(tmp_path):
    """Arena, biases, multipliers and objects. Pointers have 64 bits here, 32 on boards."""
    for cost, arena, _ in measure("keyword_spotting", tmp_path)[1]:
        assert cost - arena < 14_000
