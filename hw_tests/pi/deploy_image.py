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
FOLDERS = ("dev", "proc", "sys", "root", "lower", "state")  # of the initrd
# Waits for hardware or people that are not here.
MASKED = ("getty.target", "systemd-networkd-wait-online.service", "mosquitto.service",
          "systemd-resolved.service", "apt-daily.timer", "apt-daily-upgrade.timer",
          "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
          "systemd-firstboot.service", "systemd-timesyncd.service")  # fmt: skip
STATE_MB = 384


def base() -> Path:
    """A folder with base.ext4, vmlinuz and initrd."""
    with image.alone("deploy"):
        return _base()


def _base() -> Path:
    recipe = [Path(__file__), Path(image.__file__), *sorted(FILES.iterdir())]
    path, there = image.kept("deploy", image.digest(*(p.read_bytes() for p in recipe)))
    if there:
        return path
    with tempfile.TemporaryDirectory(dir=image.CACHE) as place:
        tree, out = Path(place) / "tree", Path(place) / "out"
        out.mkdir()
        image.debian(tree, PACKAGES)
        for useless in ("debootstrap", "usr/share/doc", "usr/share/locale", "usr/share/man",
                        "var/lib/dpkg", "var/lib/apt", "var/cache/apt"):  # fmt: skip
            shutil.rmtree(tree / useless, ignore_errors=True)
        configure(tree)
        image.disks(tree, out, 640, FILES / "initrd.sh", DRIVERS, FOLDERS)
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


def state(path: Path) -> None:
    """A new, empty disk for everything that changes."""
    image.run("mke2fs", "-q", "-t", "ext4", "-m", "0", path, f"{STATE_MB}M")
