"""What each operator means: checks its operands and turns them into a kernel call.

Theory of operation. `missing` looks only at operator codes, so an unsupported model is
refused by name before memory is spent. `prepare` then checks one operator: types, ranks,
shapes against each other, quantisation, options. Everything a kernel relies on is
established there, because kernels (native ones above all) check nothing: each buffer has
exactly the length that the parameters imply, and every index stays inside.

Output shapes are computed again and compared with those in the file. A model that
TensorFlow Lite Micro would abort on, or compute something undefined for, is a
ModelError.
"""

from . import op_values, op_window
from .errors import ModelError
from .flatbuffer import Graph, Operator
from .operands import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .kernels import Tiers
    from .operands import Step

RESHAPE = 22

# Schema codes of the supported operators.
OPERATORS = {
    0: op_values.add,
    1: op_window.average_pool_2d,
    2: op_values.concatenation,
    3: op_window.conv_2d,
    4: op_window.depthwise_conv_2d,
    6: op_values.dequantize,
    9: op_window.fully_connected,
    14: op_values.logistic,
    17: op_window.max_pool_2d,
    18: op_values.mul,
    19: op_values.relu,
    21: op_values.relu6,
    RESHAPE: op_values.reshape,
    25: op_values.softmax,
    34: op_values.pad,
    40: op_values.mean,
    114: op_values.quantize,
}


def missing(graph: Graph) -> "list[str]":
    """Names of the operators in the model that this library lacks, each once, sorted."""
    names = []
    for op in graph.operators:
        if op.code not in OPERATORS:
            name = graph.operator_name(op)
            if name not in names:
                names.append(name)
    return sorted(names)


def prepare(
    graph: Graph, op: Operator, tiers: "Tiers", view: "Callable[[int], Any]"
) -> "Step | None":
    """(name, kernel, arguments) to call at every invocation, None when nothing is to be done.

    tiers: where kernels come from.  view(index): memory of a computed tensor.
    ModelError names the operator or the tensor.
    """
    call = Call(graph, op, tiers, view)
    graph.reader.where = ""  # names take long to make; only errors get them
    try:
        return OPERATORS[op.code](call)
    except ModelError as error:
        if not error.where:
            raise ModelError(error.what, call.where(), error.fix)
        raise
