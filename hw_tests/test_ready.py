"""A stock board becomes an agent over its serial line, and fits its heap."""

import hashlib
from pathlib import Path

import pytest
from harness.deploy import MAIN, commission, deployed, mpremote, settings, tree
from harness.machine import ROMFS_AT, ROMFS_BYTES, Machine
from harness.world import HEAP_KIB

from edge_agent.tools import romfs

fast, full = pytest.mark.fast, pytest.mark.full
# Free heap, bytes, when the agent stands ready: room for one more frame and its answers.
FREE_AT_READY = 12 * 1024


@pytest.mark.board
@fast
def test_ready_within_its_heap_and_delivers(world):
    world.go(windows=30, gap=5)
    world.finish()
    verdict = world.judge("ready", heap_kib=HEAP_KIB, free=world.ledger.boots[0][2])
    assert verdict.committed == verdict.delivered == 30
    assert verdict.unnoted == 0
    assert world.ledger.boots[0][2] >= FREE_AT_READY, world.ledger.boots


@full
def test_everything_over_the_serial_line(kind, tmp_path, bench):
    """mpremote romfs deploy and cp, as on a user's desk; the flash is the one tests use."""
    folder, image = tmp_path / "rom", tmp_path / "rom.img"
    tree(kind, folder)
    image.write_bytes(romfs.image(folder))
    (tmp_path / "main.py").write_bytes(MAIN)
    machine = Machine(kind, tmp_path / "machine")
    with machine.start(options={"main": 0}):
        mpremote(machine, "romfs", "deploy", image)
        mpremote(machine, "cp", tmp_path / "main.py", ":main.py")
        said = mpremote(machine, "ls", ":")
        assert "main.py" in said
        copied = Path(tmp_path / "back.py")
        mpremote(machine, "cp", ":main.py", copied)
        assert copied.read_bytes() == MAIN
        mpremote(machine, "soft-reset")
    rom = slice(ROMFS_AT, ROMFS_AT + ROMFS_BYTES)
    used = len(image.read_bytes())
    mine, theirs = machine.save()[rom][:used], deployed(kind)[rom][:used]
    assert hashlib.sha256(mine).digest() == hashlib.sha256(theirs).digest()
    commission(machine, settings(bench.enrol("board")))
    assert (b'"agent"') in machine.save()
