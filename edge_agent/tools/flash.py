"""`edge-agent flash`: from a board with MicroPython to the first outcome in custody.

Theory of operation. The old agent goes on until the new one is complete, and a cut at any
place leaves one or the other, or a board that says it is half-flashed and is finished by
running the same command again:

    look      what the board is, what it has: both slots, each file with its hash
    copy      files into the slot that is not in force; what is there already stays, and what
              the other slot has is copied on the board
    rom       with ROMFS: blocks that differ; the first one is erased first and written last, so
              that a torn image is none. There is one partition: the old agent in it is gone
              meanwhile
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
def rom_hashes(n):
    b = bytearray(rom.ioctl(5, 0))
    for k in range(n):
        rom.readblocks(k, b)
        print(json.dumps(hexlify(hashlib.sha256(b).digest()).decode()))
"""


class Plan(NamedTuple):
    """What there is to do. `done`: nothing. `found`: the board's state in words."""

    slot: str
    send: "dict[str, bytes]"
    same: "dict[str, str]"  # path -> a file of the other slot with that content
    stale: "list[str]"
    kept: int  # files that are there already
    rom: "list[int]"  # blocks of the image to be written
    done: bool
    found: str


def plan(repl: Repl, facts: Facts, freight: Freight) -> Plan:
    """Compare what is there with what is to be. StoreError when it does not fit."""
    there: dict[str, tuple[int, str]] = {}
    for slot in SLOTS:
        for path, size, digest in repl.lines(f"tree('/edge-{slot}')"):
            there[path] = size, digest
    rom: list[int] = []
    if freight.romfs and len(freight.image) <= facts.rom:
        repl.exec(_ROM)
        rom = _differing(repl, freight.image, facts.rom_block)
    active = str(facts.edge.get("slot", ""))
    if active in SLOTS and facts.edge.get("id") == freight.id:
        slot = active
        send, stale, kept = _compare(there, freight, slot)
        if not send and not rom:
            done = facts.main == _hash(MAIN) and not _other(there, slot)
            return Plan(slot, {}, {}, stale, kept, [], done, _state(facts, there))
    slot = "b" if active == "a" else "a"
    send, stale, kept = _compare(there, freight, slot)
    _room(facts, freight, there, slot, send, stale)
    at = {digest: path for path, (size, digest) in there.items() if size > 0 and _in(path, active)}
    same = {path: at[_hash(data)] for path, data in send.items() if _hash(data) in at}
    send = {path: data for path, data in send.items() if path not in same}
    return Plan(slot, send, same, stale, kept, rom, False, _state(facts, there))


def _in(path: str, slot: str) -> bool:
    return path.startswith(f"/edge-{slot}/")


def _blocks(image: bytes, block: int) -> "list[bytes]":
    return [image[at : at + block].ljust(block, b"\xff") for at in range(0, len(image), block)]


def _differing(repl: Repl, image: bytes, block: int) -> "list[int]":
    """Blocks of the image that are not in ROMFS as they should be."""
    wanted = [_hash(data) for data in _blocks(image, block)]
    found = repl.lines(f"rom_hashes({len(wanted)})")
    return [k for k, digest in enumerate(wanted) if digest != found[k]]


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
        if _in(path, slot)
        and path not in wanted
        and not (size < 0 and any((f + "/").startswith(path + "/") for f in folders))
    ]
    return send, stale, len(wanted) - len(send)


def _other(there: "dict[str, tuple[int, str]]", slot: str) -> bool:
    return any(not _in(path, slot) for path in there)


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
    for path in sorted({*todo.send, *todo.same}, key=lambda p: (p.endswith("/" + DEVICE), p)):
        parts = path.split("/")[1:-1]
        for n in range(1, len(parts) + 1):
            folder = "/" + "/".join(parts[:n])
            if folder not in made:
                repl.exec(f"try:\n os.mkdir({folder!r})\nexcept OSError:\n pass")
                made.add(folder)
        if path in todo.same:
            repl.exec(f"same({todo.same[path]!r}, {path!r})")
        else:
            repl.put(path, todo.send[path], sent)


def write_rom(
    repl: Repl, image: bytes, block: int, which: "list[int]", sent: "Callable[[int], None]"
) -> None:
    """Write these blocks of the image, the first one last. Broken, StoreError."""
    parts = _blocks(image, block)
    repl.exec("n = rom.ioctl(6, 0)")
    piece = next(n for n in (2048, 1024, 512, block) if block % n == 0)
    for k in [*[k for k in which if k], 0]:
        if k:
            repl.exec(f"n = rom.ioctl(6, {k})")
        for at in range(0, block, piece):
            data = base64(parts[k][at : at + piece])
            repl.exec(f"rom.writeblocks({k}, a2b_base64({data!r}), {at})")
            sent(piece)


def verify(repl: Repl, freight: Freight, slot: str, block: int) -> int:
    """Hash everything on the board; how many files. StoreError names what differs."""
    found = {path: digest for path, _, digest in repl.lines(f"tree('/edge-{slot}')")}
    wanted = freight.slot(slot)
    wrong = [path for path, data in wanted.items() if found.get(path) != _hash(data)]
    if freight.romfs:
        wrong += [f"block {k} of ROMFS" for k in _differing(repl, freight.image, block)]
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
        start, word, rest = (line + "  ").split(" ", 2)
        if start != "edge:":
            last = line or last
            continue
        try:
            said = json.loads(rest)
        except ValueError:
            continue
        if word == "ready":
            ready = said
            tell(f"agent {said['agent']} is ready, boot {said['boot']}, waiting for an ack")
        elif word == "acked":
            return Started(ready, int(said["records"]), events)
        elif word in ("failed", "half"):
            raise RemoteError("agent-failed", str(said["error"]))
        elif word == "event":
            events.append(str(said["name"]))
            tell(f"{said['level']}: {said['name']} {said['fields']}")
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
        write_rom(repl, freight.image, facts.rom_block, todo.rom, sent)
    step("verify")
    count = verify(repl, freight, todo.slot, facts.rom_block)
    switch(repl, freight, todo.slot, step)
    return count


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
