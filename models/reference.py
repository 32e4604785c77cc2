"""What devices make of int8 inputs, for whole tables: LiteRT's reference kernels.

They compute in integers from end to end, so rows of a batch have the bits that they have alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

BATCH = 500

Int8 = npt.NDArray[np.int8]


class Outputs(NamedTuple):
    """probabilities: (n, labels).  embeddings: (n, width), and their zero point."""

    probabilities: Int8
    embeddings: Int8
    zero_point: int

    def scores(self) -> npt.NDArray[np.uint8]:
        """Probabilities as outcomes have them, 0..255."""
        return self.probabilities.view(np.uint8) ^ 128

    def vectors(self, multiplier: int, shift: int) -> Int8:
        """Domain.vector of embeddings of 64 numbers; a test compares the two."""
        values = self.embeddings.astype(np.int64) - self.zero_point
        values = (values * multiplier + (1 << shift >> 1)) >> shift
        return np.clip(values, -127, 127).astype(np.int8)


def reference(tflite: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    return Interpreter(
        model_content=tflite,
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
    )


def run_int8(tflite: bytes, inputs: Int8) -> Outputs:
    """Of a model with the outputs "probabilities" and "embedding"."""
    interpreter = reference(tflite)
    source = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(source, [BATCH, inputs.shape[1]])
    interpreter.allocate_tensors()
    outputs = {detail["name"]: detail for detail in interpreter.get_output_details()}
    padding = np.zeros((-len(inputs) % BATCH, inputs.shape[1]), np.int8)
    padded = np.concatenate([inputs, padding])
    embeddings, probabilities = [], []
    for i in range(0, len(padded), BATCH):
        interpreter.set_tensor(source, padded[i : i + BATCH])
        interpreter.invoke()
        embeddings.append(interpreter.get_tensor(outputs["embedding"]["index"]).copy())
        probabilities.append(interpreter.get_tensor(outputs["probabilities"]["index"]).copy())
    return Outputs(
        np.concatenate(probabilities)[: len(inputs)],
        np.concatenate(embeddings)[: len(inputs)],
        int(outputs["embedding"]["quantization"][1]),
    )
