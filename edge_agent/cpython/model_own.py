"""Model adapter on this project's own interpreter, `mpy_port.tflite`.

The third runtime, for machines where neither LiteRT nor tflite-runtime is to be had. Its
output bytes are those of TensorFlow Lite Micro, and of the same library on MicroPython: an
agent with this runtime and one on a microcontroller make identical outcomes. It takes int8
models; it reads every file with bounds checks, so none is tried in a child process first.

`Interpreter` dresses the library in the part of LiteRT's interface that batch inference
uses, so that one loop serves every runtime.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from edge_agent.errors import ModelError
from edge_agent.interfaces import Model, ModelOutput
from mpy_port import tflite
from mpy_port.tflite import flatbuffer, kernels
from mpy_port.tflite.classifier import Classifier

NAME = "own"
DTYPES: "dict[str, type[Any]]" = {"int8": np.int8, "uint8": np.uint8, "float32": np.float32}


@contextmanager
def translated(where: str) -> "Iterator[None]":
    """The library's ModelError becomes ours, with the file's name in front."""
    try:
        yield
    except tflite.ModelError as error:
        inside = error.where if error.where not in ("", "model") else ""
        what = f"{inside}: {error.what}" if inside else error.what
        raise ModelError(what, where, error.fix) from None


def check_tier(tier: str | None) -> None:
    """ModelError when there is no kernel tier of this name."""
    names = [name for name, _ in kernels.TIERS]
    if tier is not None and tier not in names:
        raise ModelError(f"no kernel tier {tier!r}", fix="Choose from " + ", ".join(names))


class OwnModel(Model):
    """A loaded model, as LiteModel is; `kernels` names the tier that runs it."""

    runtime = NAME
    profile = False  # see LiteModel

    def __init__(self, data: bytes, where: str, tier: str | None = None) -> None:
        self.where = where
        with translated(where):
            self._classifier = Classifier(data, tier)
        self.kernels = self._classifier.interpreter.tier
        self.sha256 = hashlib.sha256(data).digest()
        self.model_id = self.sha256[:8]
        self.input_length = self._classifier.input_length
        self.labels = self._classifier.labels
        self.embedding_length = self._classifier.embedding_length

    def run(self, features: bytes) -> ModelOutput:
        if len(features) != self.input_length:
            raise ModelError(
                f"{len(features)} features, the input takes {self.input_length}",
                self.where,
                "Use the domain that belongs to this model",
            )
        with translated(self.where):
            scores, embedding, zero_point = self._classifier.run(features)
        if self.profile:
            return ModelOutput(scores, features, 0)
        return ModelOutput(scores, embedding, zero_point)


class Interpreter:
    """The library behind LiteRT's method names; inputs and outputs are numpy arrays."""

    def __init__(self, data: bytes, where: str, tier: str | None = None) -> None:
        self._where = where
        with translated(where):
            self._net = tflite.Interpreter(data, tier)
            graph = flatbuffer.Graph(data)
        self.tier = self._net.tier
        self._names = [graph.name(k) for k in (*graph.inputs, *graph.outputs)]

    def get_input_details(self) -> "list[dict[str, Any]]":
        return [_detail(i, k, self._names[k]) for k, i in enumerate(self._net.inputs)]

    def get_output_details(self) -> "list[dict[str, Any]]":
        names = self._names[len(self._net.inputs) :]
        return [_detail(i, k, names[k]) for k, i in enumerate(self._net.outputs)]

    def set_tensor(self, index: int, value: Any) -> None:
        """index: of the input, as its details say."""
        with translated(self._where):
            self._net.set_input(value.tobytes(), index)

    def invoke(self) -> None:
        with translated(self._where):
            self._net.invoke()

    def get_tensor(self, index: int) -> Any:
        """index: of the output, as its details say. A copy."""
        info = self._net.outputs[index]
        raw = bytes(memoryview(self._net.output(index)).cast("B"))
        return np.frombuffer(raw, DTYPES[info.type]).reshape(info.shape)


def _detail(info: Any, index: int, name: str) -> "dict[str, Any]":
    return {
        "name": name or info.where,
        "index": index,
        "shape": np.array(info.shape, np.int32),
        "dtype": DTYPES[info.type],
        "quantization": (info.scale, info.zero_point),
    }
