"""A classifier that also tells what its input looked like: two outputs, found by name.

The outputs are "probabilities" and "embedding", as names of a signature's outputs or of the
tensors themselves. Both ends of the model are int8, or uint8 moved by 128. What comes out
is integers made with integer arithmetic, so that it is the same bytes on every
interpreter, whatever its floats are:

    scores      u8 = probability * 256, at most 255, rounded half up
    embedding   int8 with its zero point
"""

from .errors import ModelError
from .interpreter import Interpreter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Classifier:
    """A loaded classifier.

    model, tier, plan: as for Interpreter. `data` is the model's file, for its hash.
    input_length, labels, embedding_length: values, each a byte.
    ModelError as from Interpreter, or when the model is no such classifier.
    """

    def __init__(self, model: "Any", tier: "str | None" = None, plan: "Any" = None) -> None:
        # Imported here and not kept: a board lets go of them when the model is loaded.
        from .loading import read_files
        from .outputs import find_outputs, score_table

        if hasattr(model, "__fspath__"):
            model = model.__fspath__()
        if isinstance(model, str):
            model, plan = read_files(model, plan)
        self.data = model
        self.interpreter = Interpreter(model, tier, plan)
        inputs, outputs = self.interpreter.inputs, self.interpreter.outputs
        if len(inputs) != 1:
            raise ModelError("%d inputs, one is needed" % len(inputs), "model")
        self._scores, self._embedding = find_outputs(model)
        scores, embedding = outputs[self._scores], outputs[self._embedding]
        for info in (inputs[0], scores, embedding):
            if info.type == "float32":
                raise ModelError(
                    "float32, needed is int8 or uint8",
                    info.where,
                    "Convert the model with int8 inputs and outputs",
                )
        self.input_length = inputs[0].size
        self.labels = scores.size
        self.embedding_length = embedding.size
        self.zero_point = embedding.zero_point
        self._table = score_table(scores)
        self._flip_in = inputs[0].type == "uint8"
        self._flip_out = embedding.type == "uint8"
        if self._flip_out:
            self.zero_point -= 128

    def run(self, features: "Any") -> "tuple[bytes, bytes, int]":
        """(scores, embedding, zero point of the embedding) for int8 features as bytes."""
        net = self.interpreter
        net.set_input(_flipped(features) if self._flip_in else features)
        net.invoke()
        table = self._table
        scores = bytes([table[v & 255] for v in net.output(self._scores)])
        embedding = bytes(net.output(self._embedding))
        if self._flip_out:
            embedding = _flipped(embedding)
        return scores, embedding, self.zero_point


def _flipped(data: "Any") -> bytes:
    return bytes([(v & 255) ^ 0x80 for v in data])
