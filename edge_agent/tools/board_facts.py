"""What a board says of itself, and whether the agent may go onto it.

Asked over the raw REPL; nothing is changed. Of a device.json that is there only the agent's
id, the generation of its key and its watchdog are told. The hardware's watchdog cannot be
stopped: where an agent with one may have run, it is fed until the next reset.
"""

import json
from typing import Any, NamedTuple

from edge_agent.errors import ConfigError
from edge_agent.tools.freight import JOURNAL, SWITCH
from edge_agent.tools.repl import Repl

LEAST_VERSION = (1, 25)
MPY = 6, 3  # version of .mpy files, and of native code in them
_ARCHITECTURES = (
    "", "x86", "x64", "armv6", "armv6m", "armv7m", "armv7em", "armv7emsp", "armv7emdp", "xtensa",
    "xtensawin", "rv32imc", "rv64imc",
)  # fmt: skip
_PROBE = """
def content(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None
def keep(seconds):
    global dog, timer
    try:
        from machine import WDT, Timer
        dog = WDT(timeout=1000 * seconds)
    except (ImportError, ValueError):
        return
    try:
        timer = Timer(-1)
    except ValueError:
        timer = Timer(0)
    timer.init(period=1000, mode=Timer.PERIODIC, callback=lambda t: dog.feed())
def facts():
    gc.collect()
    i = sys.implementation
    fs = os.statvfs("/")
    whose, watchdog = [], 0
    for path in ("/edge-a/device.json", "/edge-b/device.json", "/device.json"):
        try:
            d = json.loads(content(path) or "{}")
            whose.append([path, d.get("agent"), d.get("generation", 0)])
            watchdog = max(watchdog, d.get("board", {}).get("watchdog_s", 0))
        except (ValueError, AttributeError, TypeError):
            pass
    try:
        os.stat("/journal")
        journal = True
    except OSError:
        journal = False
    rom = [0, 0]
    try:
        import vfs
        d = vfs.rom_ioctl(2, 0)
        if hasattr(d, "ioctl"):
            rom = [d.ioctl(4, 0), d.ioctl(5, 0)]
    except (ImportError, AttributeError, OSError):
        pass
    try:
        main = hash_of("/main.py")
    except OSError:
        main = ""
    return dict(name=i.name, platform=sys.platform, machine=getattr(i, "_machine", ""),
        version=list(i.version[:3]), mpy=getattr(i, "_mpy", 0), free=gc.mem_free(),
        block=fs[0], left=fs[3], blocks=fs[2], rom=rom, edge=content("/edge.json"),
        main=main, whose=whose, journal=journal, watchdog=watchdog)
"""


class Facts(NamedTuple):
    """What a board says of itself. rom: bytes of its ROMFS partition. left, block: of files."""

    platform: str
    machine: str
    version: tuple[int, ...]
    arch: str
    free: int
    block: int
    left: int
    rom: int
    rom_block: int
    edge: "dict[str, Any]"
    main: str
    whose: "list[tuple[str, str, int]]"
    journal: bool


def look(repl: Repl) -> Facts:
    """Ask a board. ConfigError when its firmware is too old or not MicroPython's."""
    repl.exec(_PROBE)
    found = repl.ask("facts()")
    if found["watchdog"]:
        repl.exec(f"keep({int(found['watchdog'])})")
    version = tuple(int(n) for n in found["version"])
    said = ".".join(map(str, version))
    if found["name"] != "micropython":
        raise ConfigError(f"runs {found['name']}, not MicroPython", repl.device, "--firmware FILE")
    if version[:2] < LEAST_VERSION:
        raise ConfigError(
            f"runs MicroPython {said}, the agent needs {'.'.join(map(str, LEAST_VERSION))}",
            repl.device,
            "Put newer firmware on it: --firmware FILE",
        )
    mpy = int(found["mpy"])
    if (mpy & 255, mpy >> 8 & 3) != MPY:
        raise ConfigError(
            f"wants .mpy files of version {mpy & 255}.{mpy >> 8 & 3}, we make {MPY[0]}.{MPY[1]}",
            repl.device,
            "Use an edge-agent that goes with this MicroPython, or other firmware",
        )
    number = mpy >> 10 & 15
    arch = _ARCHITECTURES[number] if number < len(_ARCHITECTURES) else ""
    if not arch:
        raise ConfigError("its firmware loads no native code", repl.device, "Use stock firmware")
    try:
        edge = dict(json.loads(found["edge"] or "{}"))
    except ValueError:
        edge = {}
    return Facts(
        found["platform"],
        found["machine"],
        version,
        arch,
        found["free"],
        found["block"],
        found["left"] * found["block"],
        found["rom"][0] * found["rom"][1],
        found["rom"][1],
        edge,
        found["main"],
        [(path, str(agent), int(generation)) for path, agent, generation in found["whose"]],
        found["journal"],
    )


def check_board(facts: Facts, board: str, about: "dict[str, Any]", device: str) -> None:
    """ConfigError when the board is not the one that was named."""
    chip = facts.machine.rpartition(" with ")[2]
    if facts.platform != about["platform"] or chip != about["machine"]:
        raise ConfigError(
            f"this is {facts.machine!r} ({facts.platform}), not {board} ({about['chip']})",
            device,
            "Name the board that is there with --board, or another --port",
        )


def check_owner(facts: Facts, fields: "dict[str, Any]", device: str) -> None:
    """ConfigError when what waits in the board's journal is not this agent's to deliver."""
    agent, generation = str(fields["agent"]), int(fields.get("generation", 0))
    for _, other, number in facts.whose:
        if other not in ("None", agent):
            raise ConfigError(
                f"this board is agent {other}, the site is {agent}",
                device,
                "Use that agent's file. To give the board away, deliver what its journal holds, "
                f"then remove {JOURNAL} and {SWITCH} from it",
            )
        if other == agent and number > generation:
            raise ConfigError(
                f"the board has key generation {number}, the site's file has {generation}",
                device,
                "Use the file of the last `edge-gateway rotate`",
            )
    if facts.journal and not facts.whose:
        raise ConfigError(
            "a journal is on it and nothing says whose",
            f"{device} {JOURNAL}",
            "Copy it away with mpremote, then remove it from the board",
        )
