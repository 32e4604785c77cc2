"""Run any int8 or float .tflite model on a batch of inputs.

Arrays are .npy files without pickled objects: the input (n, *shape of the model's input),
the output (n, *shape of its first output). A leading 1 in the model's shapes may be left
out of the input, and is then left out of the output.

Integer models: readings are quantised on the way in, round(x / scale) + zero point with
halves away from zero as the runtimes do, limited to the type's range; the output is
dequantised to float32. raw=True keeps the model's integers on both sides.

Runtimes are those of cpython/runtime.py, and "micropython": a process of that interpreter
runs the model with the kernels a board would use, and its results are written alike.
"""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.cpython import model_micropython, model_own
from edge_agent.cpython.model_own import check_tier
from edge_agent.cpython.runtime import (
    find_runtime,
    open_interpreter,
    pick_kernels,
    read_model,
)
from edge_agent.errors import ConfigError, EdgeError, LocalError, ModelError

Array = npt.NDArray[Any]
_INTEGERS = (np.int8, np.uint8, np.int16)


class InputError(LocalError):
    """The array does not fit the model, or its file cannot be used."""


def infer(
    model: "str | os.PathLike[str]",
    input_path: "str | os.PathLike[str]",
    output_path: "str | os.PathLike[str]",
    runtime: str = "auto",
    raw: bool = False,
    progress: bool = False,
    kernels: str = "auto",
    tier: str | None = None,
) -> dict[str, Any]:
    """Run `model` on every row of one .npy file and write another; returns a summary.

    kernels: "auto", "reference" or "fast" (see cpython/runtime.py). tier: kernel tier of the
    runtimes "own" and "micropython", None for the best there is. The output appears under
    its name only when it is complete. ModelError, InputError, or ConfigError.
    """
    if tier is not None and runtime not in ("own", "micropython"):
        raise ConfigError("is for --runtime own and micropython", "--tier")
    data = read_model(model)
    rows = _load(input_path)
    if runtime in ("own", "micropython"):
        interpreter: Any
        if runtime == "own":
            check_tier(tier)
            interpreter = model_own.Interpreter(data, str(model), tier)
        else:
            interpreter = model_micropython.Interpreter(model, data, tier)
        name, kernels = runtime, interpreter.tier
    else:
        found = find_runtime(runtime)
        kernels = pick_kernels(kernels, len(data))
        interpreter = open_interpreter(data, found, kernels, str(model))
        name = found.name
        kernels = getattr(interpreter, "tier", kernels)
    try:
        summary = _run(interpreter, rows, name, str(model), input_path, output_path, raw, progress)
    finally:
        if hasattr(interpreter, "close"):
            interpreter.close()
    return {"runtime": name, "kernels": kernels, **summary}


def _run(
    interpreter: Any,
    rows: Array,
    name: str,
    where: str,
    input_path: "str | os.PathLike[str]",
    output_path: "str | os.PathLike[str]",
    raw: bool,
    progress: bool,
) -> dict[str, Any]:
    """Every row through the interpreter; the part of the summary that tells of them."""
    inputs = interpreter.get_input_details()
    if len(inputs) != 1:
        raise ModelError(f"has {len(inputs)} inputs, only one can be fed", where)
    given, wanted = inputs[0], interpreter.get_output_details()[0]
    for detail in (given, wanted):
        if detail["dtype"] not in (*_INTEGERS, np.float32):
            raise ModelError(
                f"tensor {detail['name']} is {np.dtype(detail['dtype']).name}",
                where,
                "int8, uint8, int16 and float32 can be used",
            )
    full = tuple(int(n) for n in given["shape"])
    short = _fits(rows, full, str(input_path))
    _check_values(rows, given, raw, str(input_path))
    out_shape = tuple(int(n) for n in wanted["shape"])
    if short and out_shape[:1] == (1,):
        out_shape = out_shape[1:]
    out_type = np.dtype(wanted["dtype"]) if raw else np.dtype(np.float32)
    started = time.perf_counter()
    with _Output(Path(output_path), (len(rows), *out_shape), out_type) as out:
        for i in _counted(len(rows), progress):
            row = np.asarray(rows[i]).reshape(full)
            try:
                interpreter.set_tensor(given["index"], _in(row, given, raw, input_path, i))
                interpreter.invoke()
                result = interpreter.get_tensor(wanted["index"])
            except EdgeError:
                raise
            except Exception as error:
                raise ModelError(f"{name} failed at row {i}: {error}", where) from None
            out[i] = _out(result, wanted, raw).reshape(out_shape)
    seconds = time.perf_counter() - started
    return {
        "rows": len(rows),
        "input": _describe(given),
        "output": _describe(wanted),
        "written": str(output_path),
        "us_per_row": round(seconds / max(1, len(rows)) * 1e6, 1),
    }


def _describe(detail: dict[str, Any]) -> str:
    shape = [int(n) for n in detail["shape"]]
    return f"{detail['name']} {shape} {np.dtype(detail['dtype']).name}"


def _load(path: "str | os.PathLike[str]") -> Array:
    where = str(path)
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InputError(error.strerror or "cannot be read", where, "Check --input") from None
    except Exception as error:
        raise InputError(
            f"is no .npy array of numbers ({error})", where, "Write it with numpy.save"
        ) from None
    if not isinstance(rows, np.ndarray):
        rows.close()
        raise InputError("is an archive of several arrays", where, "Give one .npy file")
    if rows.dtype.kind not in "iufb" or rows.ndim < 1:
        raise InputError(f"holds {rows.dtype} {rows.shape}", where, "Give rows of numbers")
    return rows


def _fits(rows: Array, full: tuple[int, ...], where: str) -> bool:
    """True when the rows lack the model's leading 1. InputError when they do not fit."""
    item = rows.shape[1:]
    if item == full:
        return False
    if full[:1] == (1,) and item == full[1:]:
        return True
    wanted = f"(n, {', '.join(map(str, full))})"
    if full[:1] == (1,):
        wanted += f" or (n, {', '.join(map(str, full[1:]))})"
    raise InputError(f"has shape {rows.shape}, the model takes {wanted}", where, "Reshape it")


def _check_values(rows: Array, given: dict[str, Any], raw: bool, where: str) -> None:
    kind = np.dtype(given["dtype"])
    if raw and rows.dtype != kind:
        raise InputError(
            f"is {rows.dtype}, the model's input is {kind.name}",
            where,
            "Without --raw, values are converted",
        )
    if not raw and kind.type is np.int8 and rows.dtype == np.int8:
        raise InputError(
            "is int8 already",
            where,
            "Say --raw when these are quantised values; else convert them to float32",
        )
    if kind.type in _INTEGERS and not raw and not given["quantization"][0]:
        raise InputError(f"input {given['name']} has no scale", where, "Say --raw")


def _in(
    row: Array, given: dict[str, Any], raw: bool, path: "str | os.PathLike[str]", i: int
) -> Array:
    if raw:
        return row
    kind = given["dtype"]
    values = row.astype(np.float32)
    if not np.all(np.isfinite(values)):
        raise InputError(f"row {i} is not finite", str(path), "Replace NaN and infinity")
    if kind is np.float32:
        return values
    scale, zero_point = given["quantization"]
    steps = values / np.float32(scale)
    steps = np.trunc(steps + np.copysign(np.float32(0.5), steps)) + zero_point
    limits = np.iinfo(kind)
    limited: Array = np.clip(steps, limits.min, limits.max).astype(kind)
    return limited


def _out(result: Array, wanted: dict[str, Any], raw: bool) -> Array:
    if raw or wanted["dtype"] is np.float32:
        return result
    scale, zero_point = wanted["quantization"]
    real: Array = (result.astype(np.float32) - np.float32(zero_point)) * np.float32(scale or 1)
    return real


def _counted(n: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(range(n), desc="Inference", unit="row", disable=not progress)


class _Output:
    """A .npy file that appears under its name only when everything went well."""

    def __init__(self, path: Path, shape: tuple[int, ...], kind: np.dtype[Any]) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._shape = shape
        self._kind = kind

    def __enter__(self) -> Array:
        try:
            out = np.lib.format.open_memmap(
                self._part, mode="w+", dtype=self._kind, shape=self._shape
            )
        except OSError as error:
            raise InputError(
                error.strerror or "cannot be written", str(self._path), "Check --output"
            ) from None
        self._map: Any = out
        return self._map

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._map.flush()
            os.replace(self._part, self._path)
        else:
            self._part.unlink(missing_ok=True)
