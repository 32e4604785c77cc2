"""Which outputs a classifier has and what their bytes mean; asked once, when it is loaded."""

from .errors import ModelError
from .flatbuffer import Graph

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .interpreter import TensorInfo

PROBABILITIES = "probabilities"
EMBEDDING = "embedding"
_SIGNATURES_MAX = 16


def find_outputs(model: "Any") -> "tuple[int, int]":
    """Which outputs are (probabilities, embedding). ModelError when it cannot be told."""
    graph = Graph(model)
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


def score_table(info: "TensorInfo") -> bytes:
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


def _no_probabilities(info: "TensorInfo") -> ModelError:
    return ModelError(
        "scale %g and zero point %d hold no probabilities" % (info.scale, info.zero_point),
        info.where,
        "The model must end in SOFTMAX or LOGISTIC",
    )
