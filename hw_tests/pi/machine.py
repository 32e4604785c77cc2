"""A small Arm computer: QEMU's "virt" board with the images of image.py.

The job is a folder; its run.sh is what the computer does after it started, then it turns
itself off. `state` is a disk that survives power cuts; /dev/ledger in the guest is a line
to the file `ledger`; what the guest puts into a tar file on /dev/vde comes back by
`results`. The network reaches 10.0.2.100:1883 and :1884, which are two ports of this
machine, and nothing else.
"""

import io
import subprocess
import sys
import tarfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RELAY = HERE.parent / "harness" / "relay.py"
RESULTS_BYTES = 16 << 20


class Pi:
    def __init__(self, folder: Path, base: Path, apps: Path) -> None:
        self.folder, self.base, self.apps = folder, base, apps
        folder.mkdir(parents=True, exist_ok=True)
        self.console = folder / "console.log"
        self.ledger = folder / "ledger.txt"
        self.process: subprocess.Popen[bytes] | None = None
        self._job, self._state, self._results = (
            folder / name for name in ("job.tar", "state.ext4", "results.tar")
        )
        if not self._state.exists():
            command = ["mke2fs", "-q", "-t", "ext4", "-m", "0", str(self._state), "64M"]
            subprocess.run(command, check=True, capture_output=True)
        with self._results.open("wb") as file:
            file.truncate(RESULTS_BYTES)

    def start(self, job: Path, ports: "list[int]") -> None:
        """Power on. ports: of this machine, behind 10.0.2.100:1883 and :1884."""
        with tarfile.open(self._job, "w") as archive:
            archive.add(job, ".")
        with self._job.open("ab") as file:
            file.truncate(-(-file.tell() // 65536) * 65536)
        forwards = "".join(
            f",guestfwd=tcp:10.0.2.100:{1883 + i}-cmd:{sys.executable} {RELAY} {port}"
            for i, port in enumerate(ports)
        )
        command = ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a53", "-smp", "2"]
        command += ["-m", "1024", "-kernel", str(self.base / "vmlinuz")]
        command += [
            "-initrd",
            str(self.base / "initrd"),
            "-append",
            "console=ttyAMA0 quiet panic=1",
        ]
        for path, read_only in (
            (self.base / "base.ext4", True),
            (self.apps / "apps.ext4", True),
            (self._job, True),
            (self._state, False),
            (self._results, False),
        ):
            mode = ",readonly=on" if read_only else ""
            command += ["-drive", f"if=virtio,format=raw,file={path}{mode}"]
        command += ["-netdev", f"user,id=nic,restrict=on{forwards}"]
        command += ["-device", "virtio-net-pci,netdev=nic,romfile=", "-device", "virtio-rng-pci"]
        command += ["-chardev", f"file,id=ledger,path={self.ledger},append=on"]
        command += ["-device", "virtio-serial-pci"]
        command += ["-device", "virtserialport,chardev=ledger,name=ledger"]
        command += ["-display", "none", "-monitor", "none", "-no-reboot"]
        command += ["-serial", f"file:{self.console}"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def said(self) -> str:
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def written(self) -> "list[str]":
        """Whole lines of the ledger."""
        if not self.ledger.exists():
            return []
        return self.ledger.read_text(errors="replace").split("\n")[:-1]

    def off(self, seconds: float) -> None:
        """Wait until it has turned itself off."""
        assert self.process is not None
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it goes on after {seconds} s\n{self.said()[-3000:]}"
            time.sleep(0.05)
        status, self.process = self.process.returncode, None
        assert status == 0, f"QEMU ended with {status}\n{self.said()[-3000:]}"

    def kill(self) -> None:
        """The power is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def results(self) -> "dict[str, bytes]":
        """The files that the guest left for us."""
        found = {}
        with tarfile.open(fileobj=io.BytesIO(self._results.read_bytes())) as archive:
            for member in archive.getmembers():
                file = archive.extractfile(member)
                if file is not None:
                    found[member.name.removeprefix("./")] = file.read()
        return found
