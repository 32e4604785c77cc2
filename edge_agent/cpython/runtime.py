"""Finding a model runtime and opening a .tflite file with it, safely.

Three runtimes are known, tried in this order: LiteRT (`ai-edge-litert`), the older
`tflite-runtime` (32-bit Arm; needs Python <= 3.11 and numpy < 2), and "own", this project's
`mpy_port.tflite`, which is always there, takes int8 models only, and is slower.

A damaged or malicious file can crash the first two, and the process with it: of 1,500
mutilated files tflite-runtime crashed on 40 %, LiteRT on 0.2 %. So a file is first tried
in a child process, unless its SHA-256 is vouched for by a signed domain.

Kernels. "reference" means the runtime's plain C kernels, "fast" its optimised ones
(XNNPACK in LiteRT). The reference kernels do not depend on the kind of CPU and are fast
enough for small models, so "auto" takes them up to AUTO_REFERENCE_BYTES and the fast ones
above. Measured on random inputs in LiteRT, reference against fast: 2 of 100,000 scores of
the shipped perceptron differ, by 1 step of 256; the convolutional model's by 15 at most,
and 4 of 2,000 labels. LiteRT against tflite-runtime, perceptron: 1.7 % of the scores, by 11
at most, because tflite-runtime rounds twice where LiteRT rounds once.
"""

import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

from edge_agent.errors import ModelError

FILE_MAX = 256 << 20
AUTO_REFERENCE_BYTES = 1 << 20
PROBE_TIMEOUT_S = 120
_MODULES = {
    "litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
    "own": "edge_agent.cpython.model_own",
}
INSTALL = (
    "Install a runtime: pip install ai-edge-litert, or on 32-bit Arm with Python <= 3.11: "
    'pip install tflite-runtime "numpy<2"'
)

# name: "litert", "tflite-runtime" or "own".  module: with Interpreter and, but for "own",
# OpResolverType.
Runtime = namedtuple("Runtime", ("name", "module"))


def find_runtime(name: str = "auto", own: bool = True) -> Runtime:
    """The runtime asked for, or with "auto" the first there is. ModelError says what lacks.

    own: whether "auto" may end at our own runtime.
    """
    if name != "auto" and name not in _MODULES:
        raise ModelError(
            f"unknown runtime {name!r}", fix="Use auto, " + " or ".join(sorted(_MODULES))
        )
    reasons = []
    for candidate, module in _MODULES.items():
        if name not in ("auto", candidate) or (candidate == "own" and name != "own" and not own):
            continue
        try:
            return Runtime(candidate, importlib.import_module(module))
        except Exception as error:  # a broken install fails in many ways
            package = "ai-edge-litert" if candidate == "litert" else candidate
            reasons.append(f"{package} ({error})")
    if len(reasons) == 1:
        raise ModelError(f"cannot load the runtime {reasons[0]}", fix=INSTALL)
    raise ModelError("no model runtime: neither " + " nor ".join(reasons), fix=INSTALL)


def read_model(path: "str | os.PathLike[str]") -> bytes:
    """The file's bytes, after the checks that need no runtime."""
    where = str(path)
    try:
        size = os.stat(path).st_size
        if size > FILE_MAX:
            raise ModelError(f"{size} bytes are too many", where, "Models end at 256 MiB")
        data = Path(path).read_bytes()
    except OSError as error:
        raise ModelError(
            error.strerror or "cannot be read", where, "Check the path of the model"
        ) from None
    if len(data) < 16 or data[4:8] != b"TFL3":
        raise ModelError("is no .tflite file", where, "Give a TensorFlow Lite model")
    return data


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def pick_kernels(kernels: str, size: int) -> str:
    """ "reference" or "fast" for "auto"."""
    if kernels == "auto":
        return "reference" if size <= AUTO_REFERENCE_BYTES else "fast"
    if kernels not in ("reference", "fast"):
        raise ModelError(f"unknown kernels {kernels!r}", fix="Use auto, reference or fast")
    return kernels


def open_interpreter(
    data: bytes, runtime: Runtime, kernels: str, where: str, trusted: bool = False
) -> Any:
    """An interpreter with its tensors allocated, on one thread.

    kernels: from pick_kernels.  trusted: skip the trial in a child process.
    ModelError when the file cannot be used.
    """
    if runtime.name == "own":
        return runtime.module.Interpreter(data, where)
    if not trusted:
        probe(data, runtime, kernels, where)
    try:
        return make_interpreter(data, runtime, kernels)
    except Exception as error:
        raise _unusable(str(error), runtime, where) from None


def make_interpreter(data: bytes, runtime: Runtime, kernels: str) -> Any:
    """As open_interpreter, without a net: raises what the runtime raises."""
    resolvers = runtime.module.OpResolverType
    interpreter = runtime.module.Interpreter(
        model_content=data,
        num_threads=1,
        experimental_op_resolver_type=(
            resolvers.BUILTIN_REF if kernels == "reference" else resolvers.AUTO
        ),
    )
    interpreter.allocate_tensors()
    return interpreter


def probe(data: bytes, runtime: Runtime, kernels: str, where: str) -> None:
    """Open and run the model once in a child process; ModelError if that goes wrong."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    try:
        result = subprocess.run(  # noqa: S603  (our own interpreter, fixed arguments)
            [sys.executable, "-m", "edge_agent.cpython.model_probe", runtime.name, kernels],
            input=data,
            capture_output=True,
            timeout=PROBE_TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": paths},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _unusable(f"one run takes more than {PROBE_TIMEOUT_S} s", runtime, where) from None
    if result.returncode < 0:
        raise _unusable(f"it crashes the runtime (signal {-result.returncode})", runtime, where)
    try:
        answer = json.loads(result.stdout.decode() or "{}")
    except ValueError:
        answer = {}
    if result.returncode or "ok" not in answer:
        last = result.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        reason = answer.get("error") or "".join(last) or f"exit status {result.returncode}"
        raise _unusable(str(reason), runtime, where)


def _unusable(reason: str, runtime: Runtime, where: str) -> ModelError:
    text = " ".join(reason.split())[:300]
    return ModelError(
        f"{runtime.name} cannot run it: {text}",
        where,
        "The file is damaged, or uses operators this runtime lacks: fetch or convert it again",
    )
