"""Is what `edge-agent preflight` says about heap true? Estimate beside the 32-bit interpreter.

    python benchmarks/preflight.py [--quick] [--json FILE] [--check] [--write]

The library is compiled to .mpy (mpy-cross -O3) and loaded by MicroPython built for 32-bit
words and floats (`make micropython`), from a directory and from ROMFS. For each network of
the conformance zoo, the heap that a loaded model holds beyond its file is measured there and
estimated by edge_agent/tools/preflight.py. "smallest" is the whole heap with which a program
that only reads the file and loads the model comes through, to 1 KiB; "spare" is what that
is above file, library and model: room for garbage between two collections, for the text
of what is being imported, and for what fragmentation takes; "allowed" is what preflight
reckons with. --check exits 1 when an estimate is more than MARGIN off, when more is spare
than is allowed, when the arena there has another size than here, or when the library grew
by more than LIBRARY_MARGIN since footprint.json was written; --write writes that file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from memory import BUILT, source  # noqa: E402

from edge_agent.tools import bundle, preflight, romfs  # noqa: E402
from mpy_port.tflite import Interpreter  # noqa: E402
from tests.zoo import networks  # noqa: E402

FOOTPRINT = ROOT / "edge_agent" / "tools" / "footprint.json"
MARGIN, LIBRARY_MARGIN = 0.03, 0.1
FLOOR = 512  # bytes that do not count as a difference
# Not needed to run a model with plain kernels, or for hosts.
LEFT_OUT = ("host_numpy", "native", "viper", "batch", "classifier")
QUICK = ("autoencoder", "keyword_spotting", "wake_word")
SOURCE = (
    "benchmarks/preflight.py: heap after loading a first model, .mpy made with mpy-cross -O3, "
    "MicroPython built for 32-bit words; kernels in plain Python"
)
# Prints heap taken by the library with a model's kernels loaded, then by each model.
DEVICE = """
import gc, sys
image = sys.argv[1]
if image != "-":
    import vfs
    image = open(image, "rb").read()
    vfs.mount(vfs.VfsRom(image), "/rom")
    sys.path.insert(0, "/rom")
else:
    sys.path.insert(0, sys.argv[2])
def live():
    gc.collect()
    gc.collect()
    return gc.mem_alloc()
data = None
before = live()
from mpy_port.tflite import Interpreter
data = open(sys.argv[3], "rb").read()
net = Interpreter(data, tier="python")
net = data = None
print(live() - before)
for path in sys.argv[3:]:
    data = open(path, "rb").read()
    before = live()
    net = Interpreter(data, tier="python")
    print(live() - before, net.arena_bytes)
    net = data = None
"""
# Reads, imports and loads; prints the size of the whole heap once it has worked.
ALONE = """
import gc, sys
sys.path.insert(0, sys.argv[1])
whole = gc.mem_free() + gc.mem_alloc()
with open(sys.argv[2], "rb") as file:
    data = bytearray(file.seek(0, 2))
    file.seek(0)
    file.readinto(data)
from mpy_port.tflite import Interpreter
net = Interpreter(data, tier="python")
print(whole)
"""


def library() -> "list[str]":
    """Modules that a board needs to run models with kernels in plain Python."""
    folder = ROOT / "mpy_port" / "tflite"
    names = ["mpy_port"]
    for path in sorted(folder.rglob("*.py")):
        if path.stem not in LEFT_OUT:
            parts = path.relative_to(ROOT).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def compile_all(names: "list[str]", directory: Path) -> "dict[str, int]":
    """.mpy files below `directory`, as a board gets them; their sizes by module."""
    sizes = {}
    for name in names:
        path = source(name)
        target = directory / path.relative_to(ROOT).with_suffix(".mpy")
        bundle.compile_one(bundle.find_mpy_cross(), "x86", path, target)
        sizes[name] = target.stat().st_size
    return sizes


def on_device(image: str, folder: Path, models: "list[Path]") -> "list[list[int]]":
    command = [str(BUILT / "micropython32"), "-X", "heapsize=4M", str(folder / "device.py")]
    done = subprocess.run(
        [*command, image, str(folder / "mpy"), *map(str, models)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return [[int(n) for n in line.split()] for line in done.stdout.splitlines()]


def smallest_heap(folder: Path, model: Path, guess: int) -> int:
    """The smallest heap, to 1 KiB, in which a program that does nothing else loads a model."""
    low, high, found = guess // 1024 - 4, guess // 1024 + 256, 0
    while low < high:
        middle = (low + high) // 2
        command = [str(BUILT / "micropython32"), "-X", f"heapsize={middle}k"]
        command += [str(folder / "alone.py"), str(folder / "mpy"), str(model)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            high, found = middle, int(done.stdout)
        else:
            low = middle + 1
    return found


def measure(names: "list[str]") -> "dict[str, Any]":
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "device.py").write_text(DEVICE)
        (folder / "alone.py").write_text(ALONE)
        sizes = compile_all(library(), folder / "mpy")
        image = folder / "rom.img"
        image.write_bytes(romfs.image(folder / "mpy"))
        built = {name: networks.build(name)[0] for name in names}
        models = []
        for name, model in built.items():
            models.append(folder / (name + ".tflite"))
            models[-1].write_bytes(model)
        ram, *found = on_device("-", folder, models)
        rom = on_device(str(image), folder, models[:1])[0]
        smallest = []
        for path, (heap, _) in zip(models, found, strict=True):
            guess = ram[0] + heap + path.stat().st_size
            smallest.append((smallest_heap(folder, path, guess), guess))
    rows = {}
    for name, (heap, arena), (least, live) in zip(names, found, smallest, strict=True):
        net = Interpreter(built[name], "python")
        rows[name] = {
            "measured": heap,
            "estimated": arena + preflight.held(net),
            "arena": arena,
            "placed_here": net.arena_bytes,
            "smallest_heap": least,
            "spare": least - live,
            "allowed": preflight.spare(heap),
        }
    # In ROMFS the image itself is on the heap here: on a board it is flash.
    return {
        "library": {"ram": ram[0], "rom": rom[0], "mpy_bytes": sum(sizes.values())},
        "models": rows,
    }


def off(estimated: int, measured: int, margin: float = MARGIN) -> bool:
    return abs(estimated - measured) > max(FLOOR, margin * measured)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three networks")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 when an estimate is off")
    parser.add_argument("--write", action="store_true", help="write footprint.json")
    args = parser.parse_args()
    if not (BUILT / "micropython32").exists():
        print("run `make micropython` first: there is no 32-bit MicroPython")
        return 3
    report = measure(list(QUICK if args.quick else networks.NETWORKS))
    code = report["library"]
    print("library as .mpy:   %(ram)d bytes of heap, %(rom)d from ROMFS" % code)
    print(
        f"\n{'network':<18} {'measured':>9} {'estimated':>9} {'arena':>9}"
        f" {'smallest':>9} {'spare':>9} {'allowed':>9}"
    )
    bad = []
    for name, row in report["models"].items():
        mark = ""
        wrong = off(row["estimated"], row["measured"]) or row["spare"] > row["allowed"]
        if wrong or row["arena"] != row["placed_here"]:
            bad.append(name)
            mark = "  off"
        print(
            f"{name:<18} {row['measured']:>9} {row['estimated']:>9} {row['arena']:>9}"
            f" {row['smallest_heap']:>9} {row['spare']:>9} {row['allowed']:>9}{mark}"
        )
    known = preflight.table("footprint.json").get("library", {})
    for place in ("ram", "rom"):
        if not args.write and off(known.get(place, 0), code[place], LIBRARY_MARGIN):
            bad.append(f"library in {place}: footprint.json says {known.get(place)}")
    if args.write:
        text = json.dumps({"source": SOURCE, "library": code}, indent=1)
        FOOTPRINT.write_text(text + "\n")
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    if args.check and bad:
        print("not as preflight says: " + "; ".join(bad))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
