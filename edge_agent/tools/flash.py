"""`edge-agent flash`: from a board with MicroPython to the first outcome in custody.

Theory of operation. The old agent goes on until the new one is complete, and a cut at any
place leaves one or the other, or a board that says it is half-flashed and is finished by
running the same command again:

    look      what the board is, what it has: both slots, each file with its hash
    copy      files into the slot that is not in force; what is there already stays
    rom       with ROMFS: the first block is erased first and written last, so that a torn image
              is none; there is one partition, so the old agent in it is gone meanwhile
    verify    every file and the image are hashed on the board
    switch    /edge.json, by renaming; then main.py, by renaming, unless it is there
    tidy      the other slot goes
    start     a reset by software; then the console is read until the gateway has acked

Never touched: the journal, and any file that is not named here. A board that belongs to
another agent, or to a newer generation of this one's key, is refused: its journal holds what
only that agent can deliver.

The key is in device.json and nowhere else: it reaches the board inside of a raw REPL, is not
in the id of what was flashed, not in messages and not in the summary.
"""

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from edge_agent.errors import RemoteError, StoreError
from edge_agent.tools.board_facts import Facts
from edge_agent.tools.freight import DEVICE, MAIN, SLOTS, SWITCH, Freight
from edge_agent.tools.repl import Repl, base64

_ROM = """
import vfs
try:
    vfs.umount("/rom")
except OSError:
    pass
rom = vfs.rom_ioctl(2, 0)
def rom_hash(n):
    h = hashlib.sha256()
    m = memoryview(bytearray(rom.ioctl(5, 0)))
    k = 0
    while n > 0:
        rom.readblocks(k, m)
        h.update(m[:min(n, len(m))])
        n -= len(m)
        k += 1
    return hexlify(h.digest()).decode()
"""


class Plan(NamedTuple):
    """What there is to do. `done`: nothing. `found`: the board's state in words."""

    slot: str
    send: "dict[str, bytes]"
    stale: "list[str]"
    kept: int  # files that are there already
    rom: bool  # the image has to be written
    done: bool
    found: str


def plan(repl: Repl, facts: Facts, freight: Freight) -> Plan:
    """Compare what is there with what is to be. StoreError when it does not fit."""
    there: dict[str, tuple[int, str]] = {}
    for slot in SLOTS:
        for path, size, digest in repl.lines(f"tree('/edge-{slot}')"):
            there[path] = size, digest
    rom = False
    if freight.romfs:
        repl.exec(_ROM)
        rom = repl.ask(f"rom_hash({len(freight.image)})") != _hash(freight.image)
    active = str(facts.edge.get("slot", ""))
    if active in SLOTS and facts.edge.get("id") == freight.id:
        slot = active
        send, stale, kept = _compare(there, freight, slot)
        if not send and not rom:
            done = facts.main == _hash(MAIN) and not _other(there, slot)
            return Plan(slot, {}, stale, kept, False, done, _state(facts, there))
    slot = "b" if active == "a" else "a"
    send, stale, kept = _compare(there, freight, slot)
    _room(facts, freight, there, slot, send, stale)
    return Plan(slot, send, stale, kept, rom, False, _state(facts, there))


def _state(facts: Facts, there: "dict[str, tuple[int, str]]") -> str:
    slot = facts.edge.get("slot")
    if slot and facts.main == _hash(MAIN):
        return f"agent {facts.edge.get('version')} ({facts.edge.get('id')})"
    return "half-flashed" if there or slot else "no agent"


def _compare(
    there: "dict[str, tuple[int, str]]", freight: Freight, slot: str
) -> "tuple[dict[str, bytes], list[str], int]":
    """(to be sent, to be removed, right already)."""
    wanted = freight.slot(slot)
    send = {
        path: data for path, data in wanted.items() if there.get(path, (0, ""))[1] != _hash(data)
    }
    folders = {path.rpartition("/")[0] for path in wanted}
    folders |= {folder.rpartition("/")[0] for folder in folders}
    stale = [
        path
        for path, (size, _) in there.items()
        if path.startswith(f"/edge-{slot}/")
        and path not in wanted
        and not (size < 0 and any((f + "/").startswith(path + "/") for f in folders))
    ]
    return send, stale, len(wanted) - len(send)


def _other(there: "dict[str, tuple[int, str]]", slot: str) -> bool:
    return any(not path.startswith(f"/edge-{slot}/") for path in there)


def _room(
    facts: Facts,
    freight: Freight,
    there: "dict[str, tuple[int, str]]",
    slot: str,
    send: "dict[str, bytes]",
    stale: "list[str]",
) -> None:
    """StoreError when it does not fit, with how much and what is large."""

    def whole(size: int) -> int:
        return -(-max(size, 1) // facts.block) * facts.block

    if freight.romfs and len(freight.image) > facts.rom:
        raise _too_large(freight, len(freight.image), facts.rom, "the ROMFS partition")
    folders = {path.rpartition("/")[0] for path in send}
    need = sum(whole(len(data)) for data in send.values()) + 2 * facts.block * len(folders)
    left = facts.left + sum(whole(there[path][0]) for path in {*stale, *send} & there.keys())
    if need > left:
        raise _too_large(freight, need, left, "the file system")


def _too_large(freight: Freight, need: int, has: int, where: str) -> StoreError:
    largest = ", ".join(f"{name} {size}" for name, size in freight.largest()) or "the image"
    return StoreError(
        f"{where} has {has} bytes left and needs {need}: {need - has} too few",
        freight.board,
        f"The largest: {largest}. A smaller model, or fewer files of yours on the board",
        28,
    )


def copy(
    repl: Repl, todo: Plan, sent: "Callable[[int], None]", step: "Callable[[str], None]"
) -> None:
    """Bring the files of a slot; then each is hashed there. Broken, StoreError."""
    step("copy")
    for path in todo.stale:
        repl.exec(f"try:\n os.remove({path!r})\nexcept OSError:\n away({path!r})")
    made: set[str] = set()
    # The key last: a slot without it is nobody's yet.
    for path in sorted(todo.send, key=lambda p: (p.endswith("/" + DEVICE), p)):
        parts = path.split("/")[1:-1]
        for n in range(1, len(parts) + 1):
            folder = "/" + "/".join(parts[:n])
            if folder not in made:
                repl.exec(f"try:\n os.mkdir({folder!r})\nexcept OSError:\n pass")
                made.add(folder)
        repl.put(path, todo.send[path], sent)


def write_rom(repl: Repl, image: bytes, block: int, sent: "Callable[[int], None]") -> None:
    """Write the image, its first block last. Broken, StoreError."""
    count = -(-len(image) // block)
    for k in range(count):
        repl.exec(f"n = rom.ioctl(6, {k})")
    piece = next(n for n in (2048, 1024, 512, block) if block % n == 0)
    for k in [*range(1, count), 0]:
        part = image[k * block : (k + 1) * block]
        for at in range(0, len(part), piece):
            data = part[at : at + piece].ljust(piece, b"\xff")
            repl.exec(f"rom.writeblocks({k}, a2b_base64({base64(data)!r}), {at})")
            sent(len(part[at : at + piece]))


def verify(repl: Repl, freight: Freight, slot: str) -> int:
    """Hash everything on the board; how many files. StoreError names what differs."""
    found = {path: digest for path, _, digest in repl.lines(f"tree('/edge-{slot}')")}
    wanted = freight.slot(slot)
    wrong = [path for path, data in wanted.items() if found.get(path) != _hash(data)]
    if freight.romfs and repl.ask(f"rom_hash({len(freight.image)})") != _hash(freight.image):
        wrong.append("ROMFS")
    if wrong:
        raise StoreError(
            f"{', '.join(wrong[:3])} came out differently ({len(wrong)} in all)",
            repl.device,
            "Run the same again; if it stays, the board's flash is failing",
        )
    return len(wanted)


def switch(repl: Repl, freight: Freight, slot: str, step: "Callable[[str], None]") -> None:
    """Put the new slot in force, then main.py, then let go of the other slot."""
    step("switch")
    _replace(repl, SWITCH, freight.switch(slot))
    step("main")
    if repl.ask("content('/main.py')") != MAIN.decode():
        old = repl.ask("content('/main.py')")
        if old is not None and "edge-agent flash" not in old:
            repl.exec("os.rename('/main.py', '/main.old.py')")
        _replace(repl, "/main.py", MAIN)
    step("tidy")
    for other in SLOTS:
        if other != slot:
            repl.exec(f"away('/edge-{other}')")


def _replace(repl: Repl, path: str, data: bytes) -> None:
    repl.put(path + ".new", data, lambda n: None)
    repl.exec(f"os.rename({path + '.new'!r}, {path!r})")


class Started(NamedTuple):
    """What the console said: first ready line, records acked, warnings by name."""

    ready: "dict[str, Any]"
    acked: int
    events: "list[str]"


def wait(repl: Repl, seconds: float, tell: "Callable[[str], None]") -> Started:
    """Start the board and read its console until the gateway has confirmed a record.

    RemoteError when it does not in time or the agent fails, with what the board said.
    """
    repl.start()
    ready: dict[str, Any] = {}
    events: list[str] = []
    last = ""
    for line in repl.console(time.monotonic() + seconds):
        if not line.startswith("edge: "):
            last = line or last
            continue
        try:
            said = json.loads(line[6:])
        except ValueError:
            continue
        if "ready" in said:
            ready = said
            tell(f"agent {said['ready']} is ready, boot {said.get('boot')}, waiting for an ack")
        elif "acked" in said:
            return Started(ready, int(said["acked"]), events)
        elif "failed" in said or "half" in said:
            raise RemoteError("agent-failed", str(said.get("failed", said.get("half"))))
        elif "event" in said:
            events.append(str(said["event"]))
            tell(f"{said.get('level')}: {said['event']} {said.get('fields')}")
    if not ready:
        raise RemoteError("no-start", f"the agent did not start within {seconds:g} s; {last}")
    why = ", ".join(sorted(set(events))) or "nothing was sensed, or nothing reached the gateway"
    raise RemoteError("no-ack", f"no record was confirmed within {seconds:g} s: {why}")


def flash(
    repl: Repl,
    facts: Facts,
    freight: Freight,
    todo: Plan,
    sent: "Callable[[int], None]",
    step: "Callable[[str], None]",
) -> int:
    """Bring the board from what `plan` found to the new agent, not started; files verified."""
    if todo.done:
        return todo.kept
    copy(repl, todo, sent, step)
    if todo.rom:
        step("rom")
        write_rom(repl, freight.image, facts.rom_block, sent)
    step("verify")
    count = verify(repl, freight, todo.slot)
    switch(repl, freight, todo.slot, step)
    return count


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
