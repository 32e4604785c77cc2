"""What `make core32` built is what the measurements take it for."""

import subprocess
from pathlib import Path

import toolchain

BUILT = toolchain.BUILT


def product(name: str) -> Path:
    return toolchain.need(BUILT / name)


def ask(code: str, *options: str) -> str:
    interpreter = product("micropython32")
    done = subprocess.run(
        [interpreter, *options, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_words_and_floats_have_32_bits() -> None:
    assert ask("import sys; print(sys.maxsize, 1700000001.0 - 1700000000.0)") == "2147483647 0.0"


def test_heap_is_what_was_asked_for() -> None:
    heap = int(ask("import gc; print(gc.mem_free() + gc.mem_alloc())", "-X", "heapsize=110k"))
    # Less the collector's own tables, about one part in 40.
    assert 107 * 1024 < heap <= 110 * 1024


def test_modules_of_a_board_are_there() -> None:
    code = """
import asyncio, binascii, cryptolib, hashlib, json, os, random, socket, struct, tls, vfs
print(cryptolib.aes(bytes(16), 1).encrypt(bytes(16)).hex(), vfs.VfsLfs2 and vfs.VfsRom and 1)
"""
    assert ask(code) == "66e94bd4ef8a2c3b884cfa59ca342b2e 1"  # FIPS 197: zero key, zero block


def test_mpy_files_load(tmp_path: Path) -> None:
    (tmp_path / "answer.py").write_text("print(6 * 7)\n")
    source, compiled = str(tmp_path / "answer.py"), str(tmp_path / "answer.mpy")
    subprocess.run([product("mpy-cross"), source, "-o", compiled], check=True)
    (tmp_path / "answer.py").unlink()
    assert ask(f"import sys; sys.path.append({str(tmp_path)!r}); import answer") == "42"
