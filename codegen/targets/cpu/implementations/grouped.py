"""Grouped linears on quantised weights: the matrices of all groups in one packed weight."""

from dataclasses import dataclass, field, replace

from tvm import relax

from ....kernels.cpu.grouped_linear import GroupedKnobs, grouped_linear
from ....lowering.builder import Lowering
from ....lowering.lutra.linear import LinearOperands
from ....select import GroupedLinearProblem, Reason
from ..isa import Activations
from .low_bit import LowBit, form_refused
from .operands import precomputed


@dataclass(frozen=True, kw_only=True)
class GroupedProduct(LowBit):
    """A few rows at a time with the matrix of their group as it is packed, or with `unpacked` all rows of a group with
    its tiles, which are unpacked once."""

    form: Activations
    unpacked: bool = False
    knobs: GroupedKnobs = field(default_factory=GroupedKnobs)

    @property
    def name(self) -> str:
        return f"gemm of {self.family}" if self.unpacked else f"packed {self.form}"

    def why_not(self, problem: GroupedLinearProblem) -> str | None:
        if self.unpacked and not self.isa.unpacks(self.family):
            return "nothing unpacks triples whose rows lie side by side"
        return super().why_not(problem) or form_refused("dot" if self.unpacked else self.form, problem)

    def rather(self, problem: GroupedLinearProblem) -> Reason | None:
        if (reason := self.against_family(problem)) is not None:
            return reason
        packed = self._packed(problem)
        if self.unpacked or packed is not None:
            return packed if self.unpacked else None
        return Reason(f"with more than {self.knobs.static_rows} rows each group unpacks its tiles once for all of them")

    def _packed(self, problem: GroupedLinearProblem) -> Reason | None:
        if self.knobs.static(problem.rows) is not None:
            return Reason(f"up to {self.knobs.static_rows} rows read the matrices as they are packed")
        if self.form == "float":
            return Reason("nothing unpacks a group for activations as they are")
        if not self.isa.unpacks(self.family):
            return Reason("nothing unpacks triples whose rows lie side by side")
        # Rows of a decode step too may be as many as it has sequences times experts for each.
        any_number = replace(problem, rows=None, phase="prefill")
        return self.packed(any_number)

    def emit(
        self, low: Lowering, problem: GroupedLinearProblem, operands: LinearOperands, knobs: GroupedKnobs
    ) -> relax.Var:
        layout, static = self.layout(problem), None if self.unpacked else knobs.static(problem.rows)
        form: Activations = problem.activations or ("dot" if self.unpacked else self.family)
        activations = precomputed(low, operands.x, form, layout, static)
        function = grouped_linear(
            layout,
            self.isa,
            problem.groups,
            static,
            problem.dtype,
            problem.offsets,
            self.form,
            self.unpacked,
            knobs,
        )
        name = f"grouped_{'gemm' if self.unpacked else self.form}_{layout.format.describe()}"
        arguments = [*activations, *low.packed(operands.symbols[0], layout), low[operands.offsets]]
        type_ = relax.TensorType([low.rows(operands.x), problem.shape[0] // problem.groups], problem.dtype)
        return low.kernel(name, function, arguments, type_)
