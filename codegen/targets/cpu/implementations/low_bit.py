"""Linears on quantised weights: as they are packed, for few rows, or unpacked first, a tile or some hundred rows at a
time, for many.

What a weight is packed for does not depend on the number of rows: the prefill and decode graphs of a model share it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tvm import relax

from .....ir.weights.formats import WeightFormat
from ....kernels.cpu import triples
from ....kernels.cpu.lowbit_gemm import GemmKnobs, low_bit_gemm
from ....kernels.cpu.lowbit_linear import PackedKnobs, low_bit_linear
from ....kernels.cpu.packing import PackedLayout
from ....kernels.cpu.tile_gemm import TileGemmKnobs, tile_gemm
from ....kernels.cpu.unpacked_linear import UnpackedKnobs, unpacked_linear
from ....lowering.builder import Lowering
from ....lowering.lutra.linear import LinearOperands
from ....select import Family, Implementation, Knobs, LinearProblem, Reason
from ..isa import Activations, VectorIsa
from .operands import converted, epilogue, precomputed

UNITS = Reason("this processor has a unit that multiplies tiles of bytes")
"""Why codes are not multiplied by vectors."""


@dataclass(frozen=True, kw_only=True)
class LowBit(Implementation):
    """A linear whose weight is packed for `family`."""

    isa: VectorIsa
    family: Family

    def why_not(self, problem: LinearProblem) -> str | None:
        if (format := problem.format) is None:
            return "its weight is not quantised"
        if problem.activations is not None and self.family != "dot":
            kept = "are kept" if problem.activations == "float" else "are whole numbers"
            return f"activations {kept}: they are multiplied by codes, which are packed for dot products"
        if self.family == "triples" and not triples.fits(format, problem.shape[1]):
            return f"triples are ternary, with columns and groups in multiples of {triples.SPAN}"
        if problem.family is not None and problem.activations is None and self.family != self.wanted(problem):
            return f"kernel_family asks for {self.wanted(problem)}"
        return None

    def wanted(self, problem: LinearProblem) -> Family:
        """The family that is asked for or known to be the fastest, for any number of rows."""
        if problem.activations is not None:
            return "dot"
        family = problem.family or self.isa.prefers.family(format_of(problem))
        return "lookup" if family == "triples" and not triples.fits(format_of(problem), problem.shape[1]) else family

    def against_family(self, problem: LinearProblem) -> Reason | None:
        """Why another family is faster."""
        return self.isa.prefers.against_family(self.family, self.wanted(problem), format_of(problem))

    def packed(self, problem: LinearProblem) -> Reason | None:
        """Why the weight is not unpacked first."""
        return self.isa.prefers.packed(self.family, format_of(problem), problem.rows, problem.phase)

    def layout(self, problem: LinearProblem) -> PackedLayout:
        """How the weight lies in memory."""
        return PackedLayout.create(self.family, format_of(problem), *problem.shape, self.isa)


def format_of(problem: LinearProblem) -> WeightFormat:
    """Of a quantised weight."""
    assert problem.format is not None, "`why_not`"
    return problem.format


@dataclass(frozen=True, kw_only=True)
class PackedProduct(LowBit):
    """The weight as it is packed, read once for a few rows; `form` "float": times activations as they are."""

    form: Activations
    knobs: PackedKnobs = field(default_factory=PackedKnobs)

    @property
    def name(self) -> str:
        return f"packed {self.form}"

    def why_not(self, problem: LinearProblem) -> str | None:
        return super().why_not(problem) or form_refused(self.form, problem)

    def rather(self, problem: LinearProblem) -> Reason | None:
        if (reason := self.against_family(problem)) is not None:
            return reason
        if self.packed(problem) is not None or not self.isa.unpacks(self.family):
            return None
        return self.isa.prefers.unpacked()

    def emit(self, low: Lowering, problem: LinearProblem, operands: LinearOperands, knobs: PackedKnobs) -> relax.Var:
        layout, static = self.layout(problem), knobs.static(problem.rows)
        extra = epilogue(low, operands, layout.n)
        weight = low.packed(operands.symbols[0], layout)
        activations = precomputed(low, operands.x, problem.activations or self.family, layout, static)
        function = low_bit_linear(
            layout, self.isa, static, problem.dtype, problem.bias, problem.residual, self.form, knobs
        )
        type_ = relax.TensorType([low.rows(operands.x), layout.n], problem.dtype)
        return low.kernel(f"{self.form}_{layout.format.describe()}", function, [*activations, *weight, *extra], type_)


@dataclass(frozen=True, kw_only=True)
class TileProduct(LowBit):
    """Tiles of the weight, unpacked to a byte a code once for all rows, times int8 activations."""

    kernel: ClassVar[Callable[..., Any]] = staticmethod(low_bit_gemm)
    knobs: Knobs = field(default_factory=GemmKnobs)

    @property
    def name(self) -> str:
        return f"gemm of {self.family}"

    def why_not(self, problem: LinearProblem) -> str | None:
        if not self.isa.unpacks(self.family):
            return "nothing unpacks triples whose rows lie side by side"
        return super().why_not(problem) or form_refused("dot", problem)

    def rather(self, problem: LinearProblem) -> Reason | None:
        return self.against_family(problem) or self.packed(problem) or (UNITS if self.isa.multiplies_tiles else None)

    def emit(self, low: Lowering, problem: LinearProblem, operands: LinearOperands, knobs: Knobs) -> relax.Var:
        layout = self.layout(problem)
        function = self.kernel(layout, self.isa, problem.dtype, problem.bias, problem.residual, knobs)
        extra = epilogue(low, operands, layout.n)
        weight = low.packed(operands.symbols[0], layout)
        activations = precomputed(low, operands.x, problem.activations or "dot", layout, None)
        type_ = relax.TensorType([low.rows(operands.x), layout.n], problem.dtype)
        return low.kernel(f"gemm_{layout.format.describe()}", function, [*activations, *weight, *extra], type_)


@dataclass(frozen=True, kw_only=True)
class AmxProduct(TileProduct):
    """As `TileProduct`, on a unit that multiplies tiles of bytes."""

    kernel: ClassVar[Callable[..., Any]] = staticmethod(tile_gemm)
    knobs: Knobs = field(default_factory=TileGemmKnobs)

    @property
    def name(self) -> str:
        return f"tile gemm of {self.family}"

    def rather(self, problem: LinearProblem) -> Reason | None:
        return self.against_family(problem) or self.packed(problem)


@dataclass(frozen=True, kw_only=True)
class UnpackedProduct(LowBit):
    """Some hundred rows of the weight at a time, unpacked to a matrix that torch multiplies by activations as they
    are."""

    family: Family = "dot"
    knobs: UnpackedKnobs = field(default_factory=UnpackedKnobs)

    @property
    def name(self) -> str:
        return "unpacked, torch"

    def why_not(self, problem: LinearProblem) -> str | None:
        return super().why_not(problem) or form_refused("float", problem)

    def rather(self, problem: LinearProblem) -> Reason | None:
        return self.packed(problem)

    def emit(self, low: Lowering, problem: LinearProblem, operands: LinearOperands, knobs: UnpackedKnobs) -> relax.Var:
        layout, compute = self.layout(problem), self.isa.product_dtype(problem.dtype)
        extra = epilogue(low, operands, layout.n)
        weight = low.packed(operands.symbols[0], layout)
        x = converted(low, operands.x, layout.k, compute)
        function = unpacked_linear(layout, self.isa, problem.dtype, compute, problem.bias, problem.residual, knobs)
        type_ = relax.TensorType([low.rows(operands.x), layout.n], problem.dtype)
        return low.kernel(f"unpack+torch:linear_{layout.format.describe()}", function, [x, *weight, *extra], type_)


def form_refused(form: Activations, problem: LinearProblem) -> str | None:
    """Why a product that reads x in `form` is not what the model asks for."""
    if form == "float" and problem.activations != "float":
        return "activations are quantised where the recipe does not keep them"
    if form != "float" and problem.activations == "float":
        return "the recipe keeps activations as they are"
    return None
