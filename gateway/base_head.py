"""The last layer of a model file, in units of the domain's vectors: where fitting starts.

Only where the vector *is* the input of that layer: the domain's encoder is this model, its
embedding is 64 wide, and the model's last FULLY_CONNECTED reads it. Then

    logit_i = scale_x scale_w (sum_j w_ij (q_j - zero_x)) + scale_b b_i
    q_j - zero_x = v_j 2^shift / multiplier                       (Domain.vector)

for the embedding q and the vector v, apart from rounding. Nothing is run. The file is believed
no more than a device's would be: `flatbuffer` checks every offset.
"""

import hashlib
import struct

import numpy as np

from edge_agent.domain import Domain
from edge_agent.fingerprint import VECTOR_BYTES
from gateway.heads import FloatHead, Floats
from mpy_port.tflite.errors import ModelError
from mpy_port.tflite.flatbuffer import INT8, INT32, Graph, Tensor

FULLY_CONNECTED = 9
FILE_MAX = 1 << 26


def base_of(data: bytes, domain: Domain) -> FloatHead | None:
    """The model's own last layer. None when vectors of the domain are not its input, or the
    file cannot be read."""
    space = domain.space
    if len(data) > FILE_MAX or space.dim != VECTOR_BYTES:
        return None
    if space.encoder != hashlib.sha256(data).digest():
        return None
    try:
        return _last_layer(Graph(data), space.multiplier, space.shift)
    except ModelError:
        return None


def model_id(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:8]


def _last_layer(graph: Graph, multiplier: int, shift: int) -> FloatHead | None:
    layers = [op for op in graph.operators if op.code == FULLY_CONNECTED]
    if not layers or len(layers[-1].inputs) < 2:
        return None
    x, w = (graph.tensor(k) for k in layers[-1].inputs[:2])
    if w.kind != INT8 or w.data is None or len(w.shape) != 2 or w.shape[1] != VECTOR_BYTES:
        return None
    # Vectors are made of an output of the model: the one that this layer reads.
    if x.kind != INT8 or x.index not in graph.outputs:
        return None
    rows = np.frombuffer(bytes(w.data), np.int8).reshape(w.shape).astype(np.float64)
    scale_x, scale_w = _scales(graph, x, 1), _scales(graph, w, len(rows))
    weights = rows * scale_w[:, None] * scale_x * (2.0**shift / multiplier)
    bias = np.zeros(len(rows))
    if len(layers[-1].inputs) > 2 and layers[-1].inputs[2] >= 0:
        b = graph.tensor(layers[-1].inputs[2])
        if b.kind != INT32 or b.data is None or b.count != len(rows):
            return None
        bias = np.frombuffer(bytes(b.data), "<i4") * (scale_x * scale_w)
    if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
        return None
    return FloatHead(weights, bias)


def _scales(graph: Graph, tensor: Tensor, count: int) -> Floats:
    """One scale for each of `count` channels. ModelError."""
    at, found = tensor.scales
    if found not in (1, count):
        raise ModelError(f"{found} scales for {count} channels", "model")
    values = [
        struct.unpack("<f", graph.reader.u32(at + 4 * k).to_bytes(4, "little"))[0]
        for k in range(found)
    ]
    return np.broadcast_to(np.array(values, np.float64), count)
