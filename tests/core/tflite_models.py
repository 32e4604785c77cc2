"""Golden models for the tests of mpy_port.tflite, and ways to damage them."""

import json
from binascii import a2b_base64

from mpy_port.tflite import Interpreter, ModelError
from mpy_port.tflite.flatbuffer import Graph

HERE = __file__.rpartition("/")[0] or "."

with open(HERE + "/../vectors/tflite_small.json") as file:
    VECTORS = json.load(file)
MODELS = VECTORS["models"]


def load(name):
    """Model, inputs and outputs of all runs of one golden model."""
    for row in MODELS:
        if row[0] == name:
            return [a2b_base64(text) for text in row[1:]]
    raise ValueError(name)


def run_all(model, feed):
    """Outputs of every run, one after the other."""
    out, at = b"", 0
    while at < len(feed):
        for k, info in enumerate(model.inputs):
            model.set_input(feed[at : at + info.size], k)
            at += info.size
        model.invoke()
        for k in range(len(model.outputs)):
            out += bytes(model.output(k))
    return out


def message(model, **options):
    """What a ModelError says when loading fails, "" when it does not."""
    try:
        Interpreter(model, **options)
    except ModelError as error:
        return str(error)
    return ""


class Editor:
    """Finds places in a model file. `patch` gives a changed copy."""

    def __init__(self, data):
        self.data = data
        self.graph = Graph(data)
        self.reader = self.graph.reader

    def patch(self, at, value, width=4):
        if at <= 0:
            raise ValueError("no such field")
        value &= (1 << 8 * width) - 1
        return self.data[:at] + value.to_bytes(width, "little") + self.data[at + width :]

    def root(self, field):
        """Position of a field of the model."""
        return self.reader.field(self.reader.follow(0), field)

    def subgraph(self):
        return self.reader.follow(self.reader.vector(self.reader.follow(0), 2, 4)[0])

    def tensor(self, index):
        at, _ = self.reader.vector(self.subgraph(), 0, 4)
        return self.reader.follow(at + 4 * index)

    def operator(self, index):
        at, _ = self.reader.vector(self.subgraph(), 3, 4)
        return self.reader.follow(at + 4 * index)

    def code(self, index):
        at, _ = self.reader.vector(self.reader.follow(0), 1, 4)
        return self.reader.follow(at + 4 * index)

    def dimension(self, tensor, k):
        """Position of a dimension of a tensor's shape."""
        return self.reader.vector(self.tensor(tensor), 0, 4)[0] + 4 * k

    def operand(self, operator, k):
        return self.reader.vector(self.operator(operator), 1, 4)[0] + 4 * k

    def option(self, operator, field):
        return self.reader.field(self.reader.table(self.operator(operator), 4), field)

    def quantisation(self, tensor, field):
        """Position of the first element of scales (2) or zero points (3)."""
        return self.reader.vector(self.reader.table(self.tensor(tensor), 4), field, 4)[0]
