"""Model adapter for Linux: LiteRT, or tflite-runtime where there is no LiteRT; `load_model`
goes on to this project's own interpreter (model_own.py) where there is neither.

    model = load_model("watch_mlp_int8.tflite", domain=domain)
    output = model.run(features)        # interfaces.ModelOutput

A model needs one input and two outputs, found by name: "probabilities" and "embedding",
as names of a signature's outputs or of the tensors themselves. `edge-agent model tap` adds
the embedding, and the names, to a classifier that has only its probabilities.

What goes in and out is int8 in any case:

    input       int8 as it is; uint8 moved by 128; float32 = feature * input_scale
    scores      u8 = probability * 256, at most 255, rounded half up
    embedding   int8 with its zero point; uint8 moved by 128; float32 quantised as
                round(x / embedding_scale) with zero point 0, limited to int8

The two scales belong to float models only and have no default: a wrong guess would give
outcomes that look right and cannot be compared with those of other sites.
"""

import os
from typing import Any

import numpy as np

from edge_agent.cpython.model_own import OwnModel
from edge_agent.cpython.runtime import (
    INSTALL,
    find_runtime,
    open_interpreter,
    pick_kernels,
    read_model,
    sha256,
)
from edge_agent.domain import PROFILE, Domain
from edge_agent.errors import ModelError
from edge_agent.features import Features
from edge_agent.interfaces import Model, ModelOutput

_FLIP = bytes(i ^ 0x80 for i in range(256))
_TAP = "Add one with: edge-agent model tap"


class LiteModel(Model):
    """A loaded model.

    runtime, kernels: what runs it (see runtime.py).  embedding_length: width of the
    embedding.  sha256: of the whole file.  profile: what goes in is the embedding, the model's
    own is not used. `run` is for one thread at a time.
    """

    profile = False

    def __init__(
        self,
        data: bytes,
        where: str,
        runtime: str = "auto",
        kernels: str = "auto",
        trusted: bool = False,
        input_scale: float | None = None,
        embedding_scale: float | None = None,
    ) -> None:
        found = find_runtime(runtime, own=False)
        self.where = where
        self.runtime: str = found.name
        self.kernels = pick_kernels(kernels, len(data))
        self.sha256 = sha256(data)
        self.model_id = self.sha256[:8]
        self._interpreter = open_interpreter(data, found, self.kernels, where, trusted)
        inputs = self._interpreter.get_input_details()
        if len(inputs) != 1:
            raise ModelError(f"{len(inputs)} inputs, one is needed", where)
        self._input = inputs[0]
        self._scale = input_scale
        self._check_type(self._input, "input_scale", input_scale)
        scores, embedding = self._outputs()
        self.input_length = int(np.prod(self._input["shape"]))
        self.labels = int(np.prod(scores["shape"]))
        self.embedding_length = int(np.prod(embedding["shape"]))
        self._scores = scores
        self._embedding = embedding
        self._embedding_scale = embedding_scale
        self._check_type(embedding, "embedding_scale", embedding_scale)
        self._score_table = self._score_values(scores)

    def run(self, features: bytes) -> ModelOutput:
        if len(features) != self.input_length:
            raise ModelError(
                f"{len(features)} features, the input {self._input['name']} takes "
                f"{self.input_length}",
                self.where,
                "Use the domain that belongs to this model",
            )
        given = features
        kind = self._input["dtype"]
        if kind is np.uint8:
            features = features.translate(_FLIP)
        values: Any = np.frombuffer(features, np.uint8 if kind is np.uint8 else np.int8)
        if kind is np.float32:
            values = values.astype(np.float32) * np.float32(self._scale)
        try:
            self._interpreter.set_tensor(self._input["index"], values.reshape(self._input["shape"]))
            self._interpreter.invoke()
            scores = self._interpreter.get_tensor(self._scores["index"])
            embedding = self._interpreter.get_tensor(self._embedding["index"])
        except Exception as error:
            raise ModelError(f"{self.runtime} failed: {error}", self.where) from None
        if self.profile:
            return ModelOutput(self._score_bytes(scores), given, 0)
        return ModelOutput(self._score_bytes(scores), *self._embedding_bytes(embedding))

    def _score_bytes(self, values: Any) -> bytes:
        if self._score_table:
            return bytes(values.tobytes()).translate(self._score_table)
        if not (np.all(values > -0.001) and np.all(values < 1.001)):  # also catches NaN
            raise ModelError(
                f"output {self._scores['name']} holds no probabilities",
                self.where,
                "The model must end in SOFTMAX or LOGISTIC",
            )
        return bytes(np.clip(np.floor(values * 256 + 0.5), 0, 255).astype(np.uint8).tobytes())

    def _embedding_bytes(self, values: Any) -> "tuple[bytes, int]":
        kind = self._embedding["dtype"]
        if kind is np.float32:
            if not np.all(np.isfinite(values)):
                raise ModelError(f"output {self._embedding['name']} is not finite", self.where)
            steps = np.floor(values / np.float32(self._embedding_scale) + np.float32(0.5))
            return np.clip(steps, -128, 127).astype(np.int8).tobytes(), 0
        zero_point = int(self._embedding["quantization"][1])
        if kind is np.uint8:
            return values.tobytes().translate(_FLIP), zero_point - 128
        return values.tobytes(), zero_point

    def _outputs(self) -> "tuple[dict[str, Any], dict[str, Any]]":
        """Details of (probabilities, embedding)."""
        details = self._interpreter.get_output_details()
        named = {d["name"]: d for d in details}
        for key in self._interpreter.get_signature_list():
            runner = self._interpreter.get_signature_runner(key)
            outputs = runner.get_output_details()
            if "probabilities" in outputs and "embedding" in outputs:
                return outputs["probabilities"], outputs["embedding"]
        if "probabilities" in named and "embedding" in named:
            return named["probabilities"], named["embedding"]
        if len(details) == 1:
            raise ModelError(
                f"one output ({details[0]['name']}), no embedding output", self.where, _TAP
            )
        raise ModelError(
            f"cannot tell which outputs are probabilities and embedding: {', '.join(named)}",
            self.where,
            _TAP + ", which names them",
        )

    def _check_type(self, detail: "dict[str, Any]", name: str, scale: float | None) -> None:
        kind = detail["dtype"]
        if kind not in (np.int8, np.uint8, np.float32):
            raise ModelError(
                f"tensor {detail['name']} is {np.dtype(kind).name}",
                self.where,
                "Convert the model with int8 or float32 inputs and outputs",
            )
        if kind is np.float32 and not (scale is not None and 0 < scale < 1e6):
            raise ModelError(
                f"tensor {detail['name']} is float32 and no {name} was given",
                self.where,
                "Convert the model to int8, or pass the scale",
            )

    def _score_values(self, detail: "dict[str, Any]") -> bytes:
        """256 bytes: score of each possible int8 or uint8 output byte. Empty for floats."""
        kind = detail["dtype"]
        if kind is np.float32:
            return b""
        if kind not in (np.int8, np.uint8):
            raise ModelError(
                f"tensor {detail['name']} is {np.dtype(kind).name}",
                self.where,
                "Probabilities must be int8, uint8 or float32",
            )
        scale, zero_point = detail["quantization"]
        values = np.arange(256, dtype=np.uint8).view(kind).astype(np.int64)
        real = (values - zero_point) * float(scale)
        if not scale or real.min() < -0.01 or not 0.9 < real.max() < 1.1:
            raise ModelError(
                f"output {detail['name']} (scale {scale:g}, zero point {zero_point}) holds no "
                "probabilities",
                self.where,
                "The model must end in SOFTMAX or LOGISTIC",
            )
        return bytes(np.clip(np.floor(real * 256 + 0.5), 0, 255).astype(np.uint8).tobytes())


def load_model(
    path: "str | os.PathLike[str]",
    runtime: str = "auto",
    domain: Domain | None = None,
    kernels: str = "auto",
    input_scale: float | None = None,
    embedding_scale: float | None = None,
) -> LiteModel | OwnModel:
    """Load a .tflite file.

    runtime: "auto", "litert", "tflite-runtime" or "own".  domain: checked against the model;
    a domain that names this very file also saves the trial run in a child process.
    kernels: "auto", "reference" or "fast"; "own" has its own.  The scales are for float
    models (see above), which "own" refuses.
    ModelError says what is wrong with the file, the shapes or the runtimes.
    """
    where = str(path)
    data = read_model(path)
    vouched = domain is not None and domain.space.encoder == sha256(data)
    if domain is not None and isinstance(domain.space.encoder, bytes) and not vouched:
        raise ModelError(
            f"is not the encoder of domain {domain.name} (SHA-256 {sha256(data).hex()[:16]}.., "
            f"wanted {domain.space.encoder.hex()[:16]}..)",
            where,
            "Use the model file that came with the domain, or the domain that came with the model",
        )
    found = find_runtime(runtime).name
    model: LiteModel | OwnModel
    if found == "own":
        try:
            model = OwnModel(data, where)
        except ModelError as error:
            if runtime != "auto":
                raise
            raise ModelError(error.what, where, f"{error.fix or 'Change it'}. {INSTALL}") from None
    else:
        model = LiteModel(data, where, found, kernels, vouched, input_scale, embedding_scale)
    if domain is not None:
        _fit(model, domain)
    return model


def _fit(model: LiteModel | OwnModel, domain: Domain) -> None:
    width = Features(domain.features).length
    model.profile = domain.space.encoder == PROFILE
    for what, has, wants in (
        ("input", model.input_length, width),
        ("embedding", width if model.profile else model.embedding_length, domain.space.dim),
    ):
        if has != wants:
            raise ModelError(
                f"its {what} has {has} values, domain {domain.name} wants {wants}",
                model.where,
                "Use the model file that came with the domain",
            )
    if model.labels > len(domain.labels):
        raise ModelError(
            f"it gives {model.labels} scores, domain {domain.name} has {len(domain.labels)} labels",
            model.where,
            "Use the model file that came with the domain",
        )
