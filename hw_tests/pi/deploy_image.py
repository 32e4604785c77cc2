"""The same small computer as a user has it: Debian that boots into systemd, with mosquitto.

As `image.base`, with more packages and what their installers would have configured that a
boot needs: users, a machine id, names, the targets. The state disk lies over the whole
system, so that what was installed is still there after a power cut.
"""

import shutil
import tempfile
from pathlib import Path

from pi import image

FILES = Path(__file__).with_name("deploy")
PACKAGES = [*image.PACKAGES, "systemd", "systemd-sysv", "mosquitto", "util-linux", "login"]
DRIVERS = [*image.DRIVERS, "overlay"]
# Waits for hardware or people that are not here.
MASKED = ("getty.target", "systemd-networkd-wait-online.service", "mosquitto.service",
          "systemd-resolved.service", "apt-daily.timer", "apt-daily-upgrade.timer",
          "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
          "systemd-firstboot.service", "systemd-timesyncd.service")  # fmt: skip
STATE_MB = 384


def base() -> Path:
    """A folder with base.ext4, vmlinuz and initrd."""
    with image._alone("deploy"):
        return _base()


def _base() -> Path:
    recipe = [Path(__file__).read_bytes(), *(p.read_bytes() for p in sorted(FILES.iterdir()))]
    path, there = image._kept("deploy", image._digest(*recipe))
    if there:
        return path
    with tempfile.TemporaryDirectory(dir=image.CACHE) as place:
        tree, out = Path(place) / "tree", Path(place) / "out"
        out.mkdir()
        image._run("debootstrap", "--arch=arm64", "--foreign", "--variant=minbase",
                   "--include=" + ",".join(PACKAGES), image.SUITE, tree)  # fmt: skip
        archives = tree / "var/cache/apt/archives"
        for package in sorted(archives.glob("*.deb")):
            image._run("dpkg", "-x", package, tree)
        for useless in ("debootstrap", "usr/share/doc", "usr/share/locale", "usr/share/man",
                        "var/lib/dpkg", "var/lib/apt", "var/cache/apt"):  # fmt: skip
            shutil.rmtree(tree / useless, ignore_errors=True)
        configure(tree)
        kernel = next(tree.glob("boot/vmlinuz-*"))
        shutil.copy(kernel, out / "vmlinuz")
        modules = next(tree.glob("lib/modules/*"))
        (out / "initrd").write_bytes(initrd(tree, modules))
        shutil.rmtree(modules)
        shutil.rmtree(tree / "boot")
        image._ext4(tree, out / "base.ext4", 640)
        out.rename(path)
    return path


def configure(tree: Path) -> None:
    """What the packages' installers would have done, as far as a boot needs it."""
    etc = tree / "etc"
    for name in ("passwd", "group"):
        shutil.copy(tree / f"usr/share/base-passwd/{name}.master", etc / name)
    shutil.copy(tree / "usr/share/libc-bin/nsswitch.conf", etc / "nsswitch.conf")
    (etc / "hostname").write_text("pi\n")
    (etc / "hosts").write_text("127.0.0.1 localhost\n127.0.1.1 pi\n")
    # One that is set keeps systemd from treating this as a first boot.
    (etc / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    system = etc / "systemd/system"
    system.mkdir(parents=True, exist_ok=True)
    (system / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    for name in MASKED:
        (system / name).unlink(missing_ok=True)
        (system / name).symlink_to("/dev/null")
    for name, wants in (("job.service", ["multi-user"]),
                        ("network.service", ["multi-user", "network-online"])):  # fmt: skip
        shutil.copy(FILES / name, system / name)
        for target in wants:
            place = system / f"{target}.target.wants"
            place.mkdir(exist_ok=True)
            (place / name).symlink_to(f"/etc/systemd/system/{name}")
    (tree / "usr/local/lib").mkdir(parents=True, exist_ok=True)
    shutil.copy(FILES / "job.sh", tree / "usr/local/lib/job.sh")
    for name in ("job", "opt/edge", "var/lib", "var/log", "var/cache", "run", "proc", "sys", "dev"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (tree / name).mkdir(exist_ok=True)
        (tree / name).chmod(0o1777)


def initrd(tree: Path, modules: Path) -> bytes:
    """As image.initrd, with the overlay's driver and a start script of its own."""
    files = {
        "init": (0o755, (FILES / "initrd.sh").read_bytes()),
        "bin/busybox": (0o755, (tree / "bin/busybox").read_bytes()),
    }
    names: list[str] = []
    for name in DRIVERS:
        names += [n for n in image.needed(modules, name) if n not in names]
    for i, name in enumerate(names):
        files["drivers/%02d-%s.ko" % (i, name)] = (0o644, image.find(modules, name).read_bytes())
    for folder in ("dev", "proc", "sys", "root", "lower", "state"):
        files[folder] = (0o40755, b"")
    return b"".join(image.cpio(files))


def state(path: Path) -> None:
    """A new, empty disk for everything that changes."""
    image._run("mke2fs", "-q", "-t", "ext4", "-m", "0", path, f"{STATE_MB}M")
