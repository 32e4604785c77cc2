"""Gets the agent onto a machine over its serial line, as on a user's board.

    image = deployed("rv32")     flash of a machine on which everything but a device is

`mpremote romfs deploy` brings code, native kernels, model, domain and recorded windows into
ROMFS; `mpremote cp` brings main.py into littlefs. The flash after that is kept under the
hash of all that went into it, so that this happens once; each test starts from a copy and
puts its own device.json there (`commission`).
"""

import array
import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edge_agent.cpython.sensors.replay import ReplayFile
from edge_agent.cpython.signer import HostCrypto
from edge_agent.domain import Domain
from edge_agent.tools import romfs
from edge_agent.tools.bundle import bundle, find_mpy_cross
from gateway.projection import fingerprint
from harness.machine import ARCH, BUILT, FIRMWARE, ROMFS_AT, ROOT, Machine, MachineError
from harness.port import WIPE, Port

CACHE = ROOT / ".cache" / "hil"
DEVICE = Path(__file__).resolve().parents[1] / "device"
MODELS = ROOT / "models"
MODEL, DOMAIN = "watch_mlp_int8.tflite", "watch.domain"
PERSON, WINDOWS = 4, 48
# main.py of these boards. Without a threshold garbage is collected when the heap is full, and
# what lives lies all over it. The knob `job` names another module of device/.
MAIN = b"""import gc
gc.threshold(4096)
import hil_note
__import__(hil_note.word("job") or "hil_job")
"""


def windows() -> bytes:
    """Recorded windows of one person, one after the other, spread over the recordings."""
    domain = Domain.load((MODELS / DOMAIN).read_bytes(), HostCrypto())
    length = domain.features.window
    file = ReplayFile(MODELS / "data" / "watch_replay.bin")
    starts = [
        (recording, at)
        for recording in file.recordings
        if recording.person == PERSON
        for at in range(0, recording.samples - length + 1, length)
    ]
    out = b""
    for i in range(WINDOWS):
        recording, at = starts[i * len(starts) // WINDOWS]
        samples = array.array("h", file.read(recording, at, length))
        out += samples.tobytes()
    return out


def sample() -> bytes:
    """What device/hil_cuts.py makes its outcomes of: domain id, vector, fingerprint."""
    domain = Domain.load((MODELS / DOMAIN).read_bytes(), HostCrypto())
    vector = bytes(range(64))
    return domain.id + vector + fingerprint(domain.id, vector)


def tree(kind: str, out: Path) -> None:
    """What goes into ROMFS: the bundle, and beside it what this device needs."""
    bundle(ARCH[kind], out, board="qemu", scripts=tuple(sorted(DEVICE.glob("*.py"))))
    for source in sorted(DEVICE.glob("*.py")):
        target = out / "lib" / (source.stem + ".mpy")
        subprocess.run(
            [find_mpy_cross(), f"-march={ARCH[kind]}", "-s", source.name, "-o", target, source],
            check=True,
        )
    for name in (MODEL, DOMAIN):
        shutil.copy(MODELS / name, out / name)
    (out / "windows.bin").write_bytes(windows())
    (out / "sample.bin").write_bytes(sample())


def mpremote(machine: "Machine | Port", *arguments: object) -> str:
    """The command line tool on a running machine, as a user calls it."""
    command = [sys.executable, "-m", "mpremote", "connect", machine.pty, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise MachineError(f"mpremote {arguments}:\n{done.stdout}{done.stderr}{machine.story()}")
    return done.stdout


def ingredients(kind: str) -> str:
    """A hash over everything that a deployed flash is made of."""
    whole = hashlib.sha256(MAIN + find_mpy_cross().encode())
    folders = [ROOT / "edge_agent", ROOT / "mpy_port", DEVICE]
    files = [p for f in folders for p in f.rglob("*") if p.suffix in (".py", ".mpy", ".json")]
    files += [MODELS / MODEL, MODELS / DOMAIN, MODELS / "data" / "watch_replay.bin"]
    for path in sorted([*files, BUILT / FIRMWARE[kind], Path(__file__)]):
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:16]


def deployed(kind: str) -> bytes:
    """The flash of a machine with everything on it; made once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    kept = CACHE / f"{kind}-{ingredients(kind)}.img"
    with (CACHE / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            for old in CACHE.glob(f"{kind}-*.img"):
                old.unlink()
            with tempfile.TemporaryDirectory(dir=CACHE) as place:
                part = Path(place) / "part"
                part.write_bytes(deploy(kind, Path(place)))
                part.rename(kept)
        return kept.read_bytes()


def deploy(kind: str, place: Path, more: "dict[str, bytes] | None" = None) -> bytes:
    """The flash of a machine after everything was brought to it. more: files for ROMFS."""
    tree(kind, place / "rom")
    for name, data in (more or {}).items():
        (place / "rom" / name).write_bytes(data)
    image = romfs.image(place / "rom")
    (place / "main.py").write_bytes(MAIN)
    machine = Machine(kind, place / "machine")
    flash = bytearray(machine.save())
    flash[ROMFS_AT : ROMFS_AT + len(image)] = image
    machine.restore(bytes(flash))
    with machine.start(options={"main": 0}):
        mpremote(machine, "cp", place / "main.py", ":main.py")
    return machine.save()


def settings(fields: "dict[str, Any]", **more: Any) -> "dict[str, Any]":
    """An enrolment file as this kind of device wants it; `more` replaces whole sections."""
    fields = json.loads(json.dumps(fields))
    fields.update(model="/rom/" + MODEL, domain="/rom/" + DOMAIN)
    fields["broker"].update(host="uart:1", port=1883, keepalive_s=5, connect_timeout_s=3)
    fields["sensor"] = {"kind": "windows", "path": "/rom/windows.bin"}
    fields["journal"] = {"path": "/journal", "segment_bytes": 8192, "batch": 4, "batch_ms": 200}
    fields["delivery"] = {"pace_per_s": 2000, "ack_timeout_s": 5, "window": 4, "custody": 8}
    for name, value in more.items():
        fields[name] = {**fields[name], **value} if isinstance(value, dict) else value
    return fields


def commission(machine: Machine, fields: "dict[str, Any]", **knobs: Any) -> None:
    """Put device.json, and main.py, into the flash of a machine that is off."""
    with machine.start(options={"main": 0, **knobs}), machine.repl() as repl:
        repl.put("/device.json", json.dumps(fields).encode())
        repl.put("/main.py", MAIN)


def bring(board: Port, fields: "dict[str, Any]") -> None:
    """Everything onto a board behind a serial port, and what it remembered away."""
    wanted = ingredients(board.kind)
    with board.repl() as repl:
        repl.exec(WIPE)
        try:
            there = repl.get("/hil.rom").decode()
        except MachineError:
            there = ""
    if there != wanted:
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            tree(board.kind, place / "rom")
            (place / "rom.img").write_bytes(romfs.image(place / "rom"))
            mpremote(board, "romfs", "deploy", place / "rom.img")
    with board.repl() as repl:
        repl.put("/hil.rom", wanted.encode())
        repl.put("/device.json", json.dumps(fields).encode())
        repl.put("/main.py", MAIN)
