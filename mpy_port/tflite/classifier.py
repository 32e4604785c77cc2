"""A classifier that also tells what its input looked like: two outputs, found by name.

The outputs are "probabilities" and "embedding", as names of a signature's outputs or of the
tensors themselves. Both ends of the model are int8, or uint8 moved by 128. What comes out
is integers made with integer arithmetic, so that it is the same bytes on every
interpreter, whatever its floats are:

    scores      u8 = probability * 256, at most 255, rounded half up
    embedding   int8 with its zero point
"""

from .errors import ModelError
from .flatbuffer import Graph
from .interpreter import Interpreter, TensorInfo, read_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROBABILITIES = "probabilities"
EMBEDDING = "embedding"
_SIGNATURES_MAX = 16


class Classifier:
    """A loaded classifier.

    model, tier, plan: as for Interpreter. `data` is the model's file, for its hash.
    input_length, labels, embedding_length: values, each a byte.
    ModelError as from Interpreter, or when the model is no such classifier.
    """

    def __init__(self, model: "Any", tier: "str | None" = None, plan: "Any" = None) -> None:
        if hasattr(model, "__fspath__"):
            model = model.__fspath__()
        if isinstance(model, str):
            model, plan = read_files(model, plan)
        self.data = model
        self.interpreter = Interpreter(model, tier, plan)
        inputs, outputs = self.interpreter.inputs, self.interpreter.outputs
        if len(inputs) != 1:
            raise ModelError("%d inputs, one is needed" % len(inputs), "model")
        self._scores, self._embedding = find_outputs(Graph(model))
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


def find_outputs(graph: Graph) -> "tuple[int, int]":
    """Which outputs are (probabilities, embedding). ModelError when it cannot be told."""
    for names in _signatures(graph):
        found = names.get(PROBABILITIES, -1), names.get(EMBEDDING, -1)
        if found[0] in graph.outputs and found[1] in graph.outputs:
            return graph.outputs.index(found[0]), graph.outputs.index(found[1])
    named = [graph.name(index) for index in graph.outputs]
    if PROBABILITIES in named and EMBEDDING in named:
        return named.index(PROBABILITIES), named.index(EMBEDDING)
    if len(named) == 1:
        what = "one output (%s), no embedding output" % named[0]
    else:
        what = "cannot tell which outputs are probabilities and embedding: " + ", ".join(named)
    raise ModelError(what, "model", "Give the model a signature with both")


def _signatures(graph: Graph) -> "list[dict[str, int]]":
    """Output name -> tensor index of each signature of the first subgraph."""
    r = graph.reader
    r.where = "signatures"
    at, count = r.vector(r.follow(0), 7, 4)
    found = []
    for k in range(min(count, _SIGNATURES_MAX)):
        table = r.follow(at + 4 * k)
        if r.integer(table, 4):
            continue
        entry, entries = r.vector(table, 1, 4)
        names = {}
        for i in range(min(entries, len(graph.outputs))):
            pair = r.follow(entry + 4 * i)
            names[r.text(pair, 0)] = r.integer(pair, 1)
        found.append(names)
    return found


def score_table(info: TensorInfo) -> bytes:
    """256 bytes: the score for each byte an output can hold.

    ModelError when the quantisation cannot be that of probabilities.
    """
    # The scale is exactly mantissa / 2^down.
    exponent = info.scale_bits >> 23 & 255
    mantissa = info.scale_bits & 0x7FFFFF | (0x800000 if exponent else 0)
    down = 150 - (exponent or 1)
    low = -128 if info.type == "int8" else 0
    if info.scale_bits >> 31 or down < 1 or not mantissa:
        raise _no_probabilities(info)
    least, most = ((v - info.zero_point) * mantissa for v in (low, low + 255))
    one = 1 << down
    # From -0.01 up, to between 0.9 and 1.1: a SOFTMAX or LOGISTIC ends just below 1.
    if 100 * least < -one or not 9 * one < 10 * most < 11 * one:
        raise _no_probabilities(info)
    table = bytearray(256)
    for v in range(low, low + 256):
        score = (((v - info.zero_point) * mantissa << 9) + one) >> (down + 1)
        table[v & 255] = max(0, min(255, score))
    return bytes(table)


def _no_probabilities(info: TensorInfo) -> ModelError:
    return ModelError(
        "scale %g and zero point %d hold no probabilities" % (info.scale, info.zero_point),
        info.where,
        "The model must end in SOFTMAX or LOGISTIC",
    )


def _flipped(data: "Any") -> bytes:
    return bytes([(v & 255) ^ 0x80 for v in data])
