"""A child process that is started again when it ends, later each time, and ended with us.

Its standard input is a pipe that nobody writes to: it ends when this process does, however
that happens, and a child that calls `end_with_parent` then ends as by SIGTERM. A child that
went on alone would keep the next one from starting.
"""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

log = logging.getLogger("gateway")

PAUSE_S = (1.0, 60.0)
# A child that ran this long was well; its next failure counts as the first.
WELL_S = 300.0


def end_with_parent() -> None:
    """In the child: SIGTERM for ourselves when standard input ends."""

    def wait() -> None:
        # Not through sys.stdin: Python aborts when it ends while a thread reads from that.
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


class Supervised:
    """command: run with our standard output and error. name: for the log."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self._name = name
        self._command = list(command)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return self._process.pid if self._process is not None else None

    def _watch(self) -> None:
        pause = PAUSE_S[0]
        while not self._stopping.is_set():
            began = time.monotonic()
            with self._lock:
                if self._stopping.is_set():
                    return
                self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE)  # noqa: S603
            code = self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            if self._stopping.is_set():
                return
            if time.monotonic() - began > WELL_S:
                pause = PAUSE_S[0]
            log.warning("%s ended with %d; starting it again in %.0f s", self._name, code, pause)
            self._stopping.wait(pause)
            pause = min(PAUSE_S[1], pause * 2)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after 15 s."""
        with self._lock:
            self._stopping.set()
            process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join(5)
