"""Linears whose weight is not quantised: by a kernel that reads it once for few rows, or by torch's library."""

from dataclasses import dataclass, field

from tvm import relax

from ....kernels.cpu.dense_linear import COLUMNS, DenseKnobs, dense_linear
from ....lowering.builder import Lowering
from ....lowering.lutra.linear import LinearOperands
from ....lowering.symbols import FLOATS
from ....lowering.values import Parameter
from ....select import Implementation, LinearProblem, Reason
from ..isa import VectorIsa
from .operands import converted, epilogue

QUANTIZED = "its weight is quantised"


@dataclass(frozen=True, kw_only=True)
class DenseKernel(Implementation):
    """Rows of x times a parameter, read where it lies. few: rows up to which that is faster than the library."""

    knobs: DenseKnobs = field(default_factory=DenseKnobs)
    few: int = 16

    @property
    def name(self) -> str:
        return "dense"

    def why_not(self, problem: LinearProblem) -> str | None:
        if problem.format is not None:
            return QUANTIZED
        if not problem.parts:
            return "its matrix is computed: it reads parameters"
        if problem.rows is None:
            return "it is compiled for a number of rows, which is known at run time only"
        if problem.dtype not in FLOATS or problem.weight not in FLOATS:
            return f"it sums up in float32, too little for {problem.weight} times {problem.dtype}"
        _, k = problem.shape
        return f"{k} columns are no multiple of {COLUMNS}" if k % COLUMNS else None

    def rather(self, problem: LinearProblem) -> Reason | None:
        assert problem.rows is not None, "`why_not`"
        if problem.rows <= self.few:
            return None
        return Reason(f"it reads the weight for every {self.knobs.rows_of_x} rows: up to {self.few} are few")

    def emit(self, low: Lowering, problem: LinearProblem, operands: LinearOperands, knobs: DenseKnobs) -> relax.Var:
        m, (n, k), dtype = problem.rows, problem.shape, low.dtype(operands.weight)
        assert m is not None and isinstance(problem.weight, str), "`why_not`"
        x, extra = low.flat(low[operands.x], m, k), epilogue(low, operands, n)
        function = dense_linear(
            m, n, k, problem.weight, problem.dtype, problem.bias, problem.residual, problem.parts, knobs
        )
        parts = zip(operands.symbols, problem.parts, strict=True)
        weights = [low.weight(part, (size, k), dtype, low.bits_view(dtype)) for part, size in parts]
        return low.kernel("dense_linear", function, [x, *weights, *extra], relax.TensorType([m, n], problem.dtype))


@dataclass(frozen=True, kw_only=True)
class LibraryProduct(Implementation):
    """Torch's product, in the dtype in which that is fastest on this machine. few: as of `DenseKernel`."""

    isa: VectorIsa
    few: int = DenseKernel.few

    @property
    def name(self) -> str:
        return "torch"

    def why_not(self, problem: LinearProblem) -> str | None:
        return QUANTIZED if problem.format is not None else None

    def rather(self, problem: LinearProblem) -> Reason | None:
        if problem.rows is None or problem.rows > self.few:
            return None
        return Reason(f"up to {self.few} rows are multiplied by a kernel that reads the weight once")

    def emit(self, low: Lowering, problem: LinearProblem, operands: LinearOperands, knobs: object) -> relax.Var:
        rows, (n, k) = low.rows(operands.x), low.sizes(operands.weight)
        low.flat(low[operands.x], rows, k)
        extra = epilogue(low, operands, n)
        name = "linear" + "_bias" * (problem.bias is not None) + "_residual" * problem.residual
        weights = [low[operands.weight]]
        if isinstance(weights[0], Parameter):  # stacked of several, each read where it lies
            parts = zip(operands.symbols, problem.parts, strict=True)
            weights = [low.weight(part, (size, k), low.dtype(operands.weight)) for part, size in parts]
        x = converted(low, operands.x, k, self.isa.product_dtype(problem.dtype))
        return low.library(name, [x, *weights, *extra], relax.TensorType([rows, n], problem.dtype))
