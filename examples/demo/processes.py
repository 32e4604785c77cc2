"""Processes of the demo: started, read without blocking, killed and stopped by their id.

Every child leads a process group of its own: a broker that has children of its own dies
as a whole, and Ctrl-C in the terminal reaches the director only, which then ends the
others in order. Should the director itself be killed, the kernel ends its children.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, BinaryIO

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def free_port() -> int:
    """A TCP port on loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    """Whether something accepts connections on that loopback port."""
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """One program that may be started, killed and started again.

    name: for messages.  command: argument list.  log: file that collects stderr.
    stdout is either read here as JSON lines (`talk`) or goes to the log as well.
    nice: added to its niceness.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        log: Path,
        env: dict[str, str],
        talk: bool = False,
        nice: int = 0,
    ) -> None:
        self.name = name
        self.command = command
        self.log = log
        self.env = env
        self.talk = talk
        self.nice = nice
        self.starts = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._log_file: BinaryIO | None = None
        self._partial = b""

    @property
    def pid(self) -> int:
        return self._child.pid if self._child else 0

    def start(self) -> None:
        self._log_file = self.log.open("ab")
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(
            self.command,
            stdin=pipe if self.talk else subprocess.DEVNULL,
            stdout=pipe if self.talk else self._log_file,
            stderr=self._log_file,
            env={**os.environ, **self.env},
            start_new_session=True,
            preexec_fn=self._prepare,
        )
        self.starts += 1
        self._partial = b""
        if self._child.stdout:
            os.set_blocking(self._child.stdout.fileno(), False)

    def _prepare(self) -> None:
        """In the child, before it becomes the program."""
        _die_with_parent()
        if self.nice:
            os.nice(self.nice)

    def returncode(self) -> int | None:
        """None while it runs (or has not been started)."""
        return self._child.poll() if self._child else None

    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def tell(self, text: str) -> None:
        """One line to its stdin; a process that is gone is noticed elsewhere."""
        if self._child and self._child.stdin:
            try:
                self._child.stdin.write(text.encode() + b"\n")
                self._child.stdin.flush()
            except BrokenPipeError:
                pass

    def messages(self) -> list[dict[str, Any]]:
        """The JSON lines it has written since the last call."""
        out: list[dict[str, Any]] = []
        if not self._child or not self._child.stdout:
            return out
        while True:
            try:
                data = os.read(self._child.stdout.fileno(), 65536)
            except (BlockingIOError, ValueError):
                break
            if not data:
                break
            self._partial += data
        *lines, self._partial = self._partial.split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                out.append(json.loads(line))
        return out

    def signal(self, number: int) -> None:
        """Send to the whole group, if it still has its leader."""
        if self._child and self._child.poll() is None:
            os.killpg(self._child.pid, number)

    def kill(self) -> None:
        """SIGKILL the group and wait until the leader is gone."""
        self.signal(signal.SIGKILL)
        if self._child:
            self._child.wait()
        self._close()

    def stop(self, grace_s: float = 5.0) -> int:
        """SIGTERM, then SIGKILL after `grace_s`. Returns the exit code."""
        self.signal(signal.SIGTERM)
        return self.reap(grace_s)

    def reap(self, grace_s: float) -> int:
        """Wait for its end, with SIGKILL after `grace_s`. Returns the exit code."""
        if not self._child:
            return 0
        try:
            code = self._child.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            code = self._child.wait()
        self._close()
        return code

    def tail(self, lines: int = 8) -> str:
        """The end of its log, for an error message."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def _close(self) -> None:
        if self._child:
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe:
                    try:
                        pipe.close()
                    except OSError:
                        pass
        if self._log_file:
            self._log_file.close()


def wait_until(condition: Any, timeout_s: float, step_s: float = 0.05) -> bool:
    """Poll `condition()` until it is true; False when `timeout_s` has passed first."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(step_s)
    return True
