"""What is added to the result of a linear becomes part of it."""

from typing import Any

from ...ir.patterns import Pattern
from ...ir.rewriting import activations_of, constant, defined_by, single_use
from .products import NAMES, with_operands


class Residual(Pattern):
    """`add(x, linear(...))` over equal shapes -> `linear(..., residual = x)`. Integer sums are scaled first.

    @w: f32[8,8]
    %y = lutra.linear(%x, @w)
    %r = aten.add.Tensor(%h, %y, 1)
    =>
    %r = lutra.linear(%x, @w, residual = %h)
    """

    roots = ("torch.aten.add.Tensor",)

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        left, right, alpha = op.operation.operands
        if constant(alpha) != 1:
            return False
        for value, residual in ((left, right), (right, left)):
            producer = defined_by(value, *NAMES)
            if producer is None or not single_use(value) or residual.type != value.type or residual == value:
                continue
            linear = producer.opview
            if linear.residual is not None or activations_of(linear) == "integers":
                continue
            if value.type != op.operation.results[0].type:
                continue
            new = with_operands(linear, rewriter, op, linear.weight, value.type, bias=linear.bias, residual=residual)
            rewriter.replace_op(op, new.operation)
            return True
        return False
