"""One operator's operands, checked as they are taken.

Shared by the modules that prepare operators (`op_window`, `op_values`).
"""

from .errors import ModelError
from .flatbuffer import INT8, UINT8, Graph, Operator, Tensor
from .memory import signed
from .quantize import (
    HIGHEST_SCALE,
    LOWEST_SCALE,
    activation_range,
    float_bits,
    scale_parts,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .kernels import Tiers

    # Kernel name, kernel, arguments.
    Step = tuple[str, Any, tuple[Any, ...]]


class Call:
    """One operator being prepared: its operands and the way to their memory.

    view(index) gives the signed view of a computed tensor.
    """

    def __init__(
        self, graph: Graph, op: Operator, tiers: "Tiers", view: "Callable[[int], Any]"
    ) -> None:
        self.graph = graph
        self.op = op
        self.tiers = tiers
        self.view = view

    def fail(self, what: str, fix: str = "") -> ModelError:
        return ModelError(what, self.where(), fix)

    def where(self) -> str:
        return "operator %d (%s)" % (self.op.index, self.graph.operator_name(self.op))

    def operands(self, least: int, most: int) -> None:
        """Check the number of inputs, and that there is one output."""
        if not least <= len(self.op.inputs) <= most or len(self.op.outputs) != 1:
            raise self.fail(
                "%d inputs and %d outputs" % (len(self.op.inputs), len(self.op.outputs))
            )

    def input(self, k: int, kinds: "tuple[int, ...]" = (INT8,)) -> Tensor:
        index = self.op.inputs[k] if k < len(self.op.inputs) else -1
        if index < 0:
            raise self.fail("input %d is missing" % k)
        return self._typed(index, kinds)

    def output(self, kinds: "tuple[int, ...]" = (INT8,)) -> Tensor:
        return self._typed(self.op.outputs[0], kinds)

    def _typed(self, index: int, kinds: "tuple[int, ...]") -> Tensor:
        tensor = self.graph.tensor(index)
        if tensor.kind not in kinds:
            from .names import type_name

            raise self.fail(
                "%s is %s, needed is %s"
                % (
                    self.graph.where(index),
                    type_name(tensor.kind),
                    " or ".join([type_name(k) for k in kinds]),
                ),
                "Convert the model with full int8 quantisation",
            )
        return tensor

    def options(self, kind: int) -> int:
        options: int = self.op.options
        if not options or self.op.options_type != kind:
            raise self.fail("options of type %d instead of %d" % (self.op.options_type, kind))
        return options

    def data(self, tensor: Tensor) -> "Any":
        """Signed items of an activation, which may be a constant."""
        if tensor.data is not None:
            return signed(tensor.data)
        return self.view(tensor.index)

    def constants(self, tensor: Tensor) -> "tuple[int, ...]":
        """Values of a small constant tensor of int32."""
        if tensor.data is None:
            raise ModelError(
                "dynamic: its values are computed, they must be constant",
                self.graph.where(tensor.index),
                "Convert the model with fixed shapes",
            )
        if tensor.count > 16:
            raise self.fail("%d values in %s" % (tensor.count, self.graph.where(tensor.index)))
        data, out = tensor.data, []
        for at in range(0, len(data), 4):
            v = float_bits(data, at)
            out.append(v - 0x100000000 if v & 0x80000000 else v)
        return tuple(out)

    def bits(self, tensor: Tensor) -> int:
        """Bits of the one scale of a tensor; ModelError when there is none or it is unusable."""
        count = tensor.scales[1]
        if count != 1:
            raise ModelError("%d scales, needed is 1" % count, self.graph.where(tensor.index))
        found: int = tensor.scale_bits
        if not LOWEST_SCALE <= found <= HIGHEST_SCALE:
            # Names are read only for errors: that takes longer than all the rest.
            scale_parts(found, self.graph.where(tensor.index))
        return found

    def scale(self, tensor: Tensor) -> "tuple[int, int]":
        return scale_parts(self.bits(tensor), "")

    def zero(self, tensor: Tensor) -> int:
        """The zero point, inside the range of the type; 0 when there is none."""
        count = tensor.zeros[1]
        if not count:
            return 0
        value: int = tensor.zero_point
        low = 0 if tensor.kind == UINT8 else -128
        if count != 1 or not low <= value <= low + 255:
            raise ModelError(
                "%d zero points, the first is %d" % (count, value), self.graph.where(tensor.index)
            )
        return value

    def activation(self, number: int, out: Tensor) -> "tuple[int, int]":
        if number not in (0, 1, 2, 3):
            raise self.fail("fused activation %d is not supported" % number)
        zero = self.zero(out)
        if number < 2:  # none, RELU
            return zero if number else -128, 127
        return activation_range(number, self.bits(out), zero, "")

    def kernel(self, name: str, *args: "Any") -> "Step":
        """The call to make at every invocation. The last argument holds the parameters."""
        return name, self.tiers.find(name, args[-1]), args

    def same_scale(self, a: Tensor, b: Tensor) -> None:
        """Refuse operands that are quantised differently."""
        if self.bits(a) != self.bits(b) or self.zero(a) != self.zero(b):
            raise self.fail(
                "%s and %s are quantised differently"
                % (self.graph.where(a.index), self.graph.where(b.index))
            )

    def same_shape(self, a: Tensor, b: Tensor) -> None:
        if a.shape != b.shape:
            raise self.fail("shape %s where %s is needed" % (b.shape, a.shape))
