"""Disk images of a small 64-bit Arm computer with Debian, the agent and the gateway on it.

    python hw_tests/pi/image.py          build what is missing; print where it is

Three files, each kept under the hash of what it is made of:

base   Debian's packages of PACKAGES, unpacked (debootstrap checks their signatures), no
       more: nothing is configured, and nothing needs to be to run Python. Key: this recipe.
boot   Debian's kernel, and an initrd with busybox and the drivers of the virtual disks.
       Key: as base.
apps   /opt/edge: our wheel, built from this tree, and the wheels it asks for, for aarch64,
       of the versions and hashes in constraints.txt. pip checks and installs them; only
       the first line of the commands is then set to the Python over there. Key: the wheel
       and the constraints.

Needs Debian packages debootstrap, e2fsprogs and qemu-system-arm.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "pi"
GUEST = Path(__file__).with_name("guest")
SUITE = "bookworm"
PACKAGES = ["python3", "kmod", "iproute2", "busybox-static", "linux-image-arm64", "ca-certificates"]
# In this order; what each depends on is found in the modules themselves.
DRIVERS = [
    "crc32c_generic", "ext4", "virtio_pci", "virtio_blk", "virtio_net", "virtio_console",
    "virtio-rng",
]  # fmt: skip
EXTRAS = ("gateway",)
PLATFORMS = ["manylinux_2_%d_aarch64" % n for n in (17, 24, 27, 28, 31, 34, 36)]
PYTHON = "3.11"
KEEP = 2  # of each product: another run may be using the one before


class Missing(Exception):
    """Something of the environment; named."""


def run(*command: object, **more: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **more)
    if done.returncode:
        raise Missing(f"{command[0]} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def digest(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:16]


def kept(name: str, key: str) -> "tuple[Path, bool]":
    """Where a product is or is to be, and whether it is there."""
    path = CACHE / f"{name}-{key}"
    if path.exists():
        os.utime(path)
        return path, True
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in sorted(CACHE.glob(name + "-*"), key=os.path.getmtime)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return path, False


@contextlib.contextmanager
def alone(name: str) -> "Iterator[None]":
    """Workers of one test run must not build the same thing."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / (name + ".lock")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ext4(folder: Path, image: Path, megabytes: int) -> None:
    run("mke2fs", "-q", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0", "-d", folder, image,
         f"{megabytes}M")  # fmt: skip


# -- base and boot ------------------------------------------------------------------------


def base() -> Path:
    """A folder with base.ext4, vmlinuz and initrd."""
    with alone("base"):
        return _base()


def _base() -> Path:
    recipe = [Path(__file__).read_bytes()] + [p.read_bytes() for p in sorted(GUEST.iterdir())]
    path, there = kept("base", digest(*recipe))
    if there:
        return path
    with tempfile.TemporaryDirectory(dir=CACHE) as place:
        tree, out = Path(place) / "tree", Path(place) / "out"
        out.mkdir()
        debian(tree, PACKAGES)
        for useless in ("var/cache/apt/archives", "debootstrap", "usr/share/doc", "var/lib"):
            shutil.rmtree(tree / useless, ignore_errors=True)
        for folder in ("job", "state", "opt/edge"):
            (tree / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(GUEST / "init.sh", tree / "init.sh")
        (tree / "init.sh").chmod(0o755)
        disks(tree, out, 512, GUEST / "initrd.sh", DRIVERS, ("dev", "proc", "sys", "root"))
        out.rename(path)
    return path


def debian(tree: Path, packages: "list[str]") -> None:
    """Debian's packages and what they need, unpacked; the archives stay in it."""
    run("debootstrap", "--arch=arm64", "--foreign", "--variant=minbase",
        "--include=" + ",".join(packages), SUITE, tree)  # fmt: skip
    for package in sorted((tree / "var/cache/apt/archives").glob("*.deb")):
        run("dpkg", "-x", package, tree)


def disks(
    tree: Path, out: Path, megabytes: int, script: Path, drivers: "list[str]",
    folders: "tuple[str, ...]",
) -> None:  # fmt: skip
    """base.ext4, vmlinuz and initrd of a tree, which has no kernel afterwards."""
    shutil.copy(next(tree.glob("boot/vmlinuz-*")), out / "vmlinuz")
    modules = next(tree.glob("lib/modules/*"))
    (out / "initrd").write_bytes(initrd(tree, modules, script, drivers, folders))
    shutil.rmtree(modules)
    shutil.rmtree(tree / "boot")
    ext4(tree, out / "base.ext4", megabytes)


def initrd(
    tree: Path, modules: Path, script: Path, drivers: "list[str]", folders: "tuple[str, ...]"
) -> bytes:
    """A cpio archive: busybox, the drivers in the order to load them, the init script."""
    files = {
        "init": (0o755, script.read_bytes()),
        "bin/busybox": (0o755, (tree / "bin/busybox").read_bytes()),
    }
    names: list[str] = []
    for name in drivers:
        names += [n for n in needed(modules, name) if n not in names]
    for i, name in enumerate(names):
        files["drivers/%02d-%s.ko" % (i, name)] = (0o644, find(modules, name).read_bytes())
    for folder in folders:
        files[folder] = (0o40755, b"")
    return b"".join(cpio(files))


def find(modules: Path, name: str) -> Path:
    for path in modules.rglob("*.ko"):
        if path.stem.replace("-", "_") == name.replace("-", "_"):
            return path
    raise Missing(f"the kernel has no module {name}")


def needed(modules: Path, name: str) -> "list[str]":
    """A module and all it depends on, which come first. Built-in ones are left out."""
    built_in = {Path(line).stem for line in (modules / "modules.builtin").read_text().split()}
    if name in built_in:
        return []
    found = re.search(rb"\0depends=([^\0]*)\0", find(modules, name).read_bytes())
    out: list[str] = []
    for other in (found[1].decode() if found else "").split(","):
        if other:
            out += [n for n in needed(modules, other) if n not in out]
    return [*out, name]


def cpio(files: "dict[str, tuple[int, bytes]]") -> "Iterator[bytes]":
    """The "newc" format of cpio: what a kernel unpacks."""
    folders = {str(p) for name in files for p in Path(name).parents} - {"."}
    everything = dict.fromkeys(folders, (0o40755, b"")) | files
    for i, name in enumerate([*sorted(everything), "TRAILER!!!"]):
        mode, data = everything.get(name, (0, b""))
        if not mode & 0o170000:
            mode |= 0o100000
        fields = [i + 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        head = b"070701" + b"".join(b"%08X" % n for n in fields) + name.encode() + b"\0"
        yield head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


# -- apps -----------------------------------------------------------------------------------


def our_wheel(place: Path) -> Path:
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", place, ROOT)
    (wheel,) = place.glob("*.whl")
    return wheel


def apps() -> Path:
    """A folder with apps.ext4."""
    with alone("apps"):
        return _apps()


def _apps() -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    constraints = (ROOT / "constraints.txt").read_text()
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        place = Path(name)
        wheel = our_wheel(place)
        recipe = Path(__file__).read_bytes()
        path, there = kept("apps", digest(wheel.read_bytes(), constraints.encode(), recipe))
        if there:
            return path
        out, site = place / "out", place / "site"
        out.mkdir()
        pip = [sys.executable, "-m", "pip", "install", "-q", "--only-binary=:all:"]
        there_not_here = ["--implementation", "cp", "--python-version", PYTHON]
        for platform in PLATFORMS:
            there_not_here += ["--platform", platform]
        pins, blocks = place / "pins.txt", requirements(constraints)
        pins.write_text("".join(block.partition("\\")[0].strip() + "\n" for block in blocks))
        # Which packages it takes; then those alone, by their hashes.
        report = place / "report.json"
        run(*pip, *there_not_here, "--dry-run", "--ignore-installed", "--report", report,
             "--target", site, "-c", pins, f"{wheel}[{','.join(EXTRAS)}]")  # fmt: skip
        chosen = {
            (normal(i["metadata"]["name"]), i["metadata"]["version"])
            for i in json.loads(report.read_text())["install"]
        }
        wanted = place / "wanted.txt"
        ours = f"{wheel} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"
        wanted.write_text("\n".join([ours, *(b for b in blocks if pinned(b) in chosen)]) + "\n")
        run(*pip, *there_not_here, "--target", site, "--no-deps", "--require-hashes", "-r", wanted)
        for command in (site / "bin").iterdir():
            text = command.read_bytes()
            if text.startswith(b"#!"):
                command.write_bytes(b"#!/usr/bin/python3\n" + text.partition(b"\n")[2])
        ext4(site, out / "apps.ext4", 640)
        out.rename(path)
    return path


def requirements(text: str) -> "list[str]":
    """The entries of a requirements file, each with its hashes."""
    return [block for block in re.split(r"\n(?=[A-Za-z0-9])", text) if "==" in block]


def pinned(block: str) -> "tuple[str, str]":
    found = re.match(r"([A-Za-z0-9._-]+)==([^ ;\\\n]+)", block)
    assert found is not None, block[:80]
    return normal(found[1]), found[2]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    try:
        for tool in ("debootstrap", "mke2fs", "dpkg", "qemu-system-aarch64"):
            if shutil.which(tool) is None:
                raise Missing(f"{tool} is not installed")
        for path in (base(), apps()):
            size = sum(f.stat().st_blocks * 512 for f in path.iterdir())
            print(f"{path.relative_to(ROOT)}: {size >> 20} MB")
    except Missing as error:
        print(f"image: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
