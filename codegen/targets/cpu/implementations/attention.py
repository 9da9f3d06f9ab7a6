"""Attention: one query over a cache by a kernel that reads it in place, everything else by torch."""

from dataclasses import dataclass, field

from tvm import relax, tirx

from ....kernels.cpu.attention import LANES, AttentionKnobs, decode_attention
from ....lowering.builder import Lowering
from ....lowering.lutra.attention import AttentionOperands
from ....lowering.symbols import FLOATS
from ....select import AttentionProblem, Implementation, Reason


@dataclass(frozen=True, kw_only=True)
class DecodeAttention(Implementation):
    """One query of every head; the context in spans that all cores share."""

    knobs: AttentionKnobs = field(default_factory=AttentionKnobs)

    @property
    def name(self) -> str:
        return "decode"

    def why_not(self, problem: AttentionProblem) -> str | None:
        if problem.queries != 1:
            return "it takes one query"
        if problem.causal:
            return "its query would see the first key alone: no decode step"
        if None in (problem.heads, problem.kv_heads, problem.head) or problem.head != problem.value_head:
            return "heads of queries, keys and values must be of one size, known when it is compiled"
        if problem.dtype not in FLOATS:
            return f"it sums up in float32, too little for {problem.dtype}"
        if problem.mask is not None and not problem.mask.regular:
            return "its masks have one row over all keys for a batch or a head"
        assert problem.head is not None
        return f"heads of {problem.head} are no multiple of {LANES}" if problem.head % LANES else None

    def emit(
        self, low: Lowering, problem: AttentionProblem, operands: AttentionOperands, knobs: AttentionKnobs
    ) -> relax.Var:
        heads, kv_heads, head, mask = problem.heads, problem.kv_heads, problem.head, problem.mask
        assert heads is not None and kv_heads is not None and head is not None, "`why_not`"
        arguments = [low[value] for value in (operands.q, operands.k, operands.v)]
        function = decode_attention(heads, kv_heads, head, problem.dtype, operands.scale, mask, knobs)
        flat = relax.TensorType([low.sizes(operands.q)[0], 1, heads * head], problem.dtype)
        arguments += [low[operands.mask]] if mask is not None else []
        result = low.kernel("decode_attention", function, arguments, flat)
        return result if operands.merged else low.reshape(result, low.sizes(operands.out))


@dataclass(frozen=True, kw_only=True)
class LibraryAttention(Implementation):
    """Torch's."""

    @property
    def name(self) -> str:
        return "torch"

    def why_not(self, problem: AttentionProblem) -> str | None:
        del problem
        return None

    def rather(self, problem: AttentionProblem) -> Reason | None:
        return Reason("it reads keys that the mask excludes too") if problem.queries == 1 else None

    def emit(self, low: Lowering, problem: AttentionProblem, operands: AttentionOperands, knobs: object) -> relax.Var:
        arguments = [low[value] for value in (operands.q, operands.k, operands.v)]
        type_ = low.tensor_type(operands.out)
        masked = problem.mask is not None
        name = "attention" + "_causal" * problem.causal + "_mask" * masked + "_merged" * operands.merged
        arguments += [low[operands.mask]] if masked else []
        low.kernels[f"torch:{name}"] += 1
        scale = relax.prim_value(tirx.FloatImm("float64", operands.scale))
        call = relax.call_pure_packed(f"lutra.library.{name}", scale, *arguments, ty_args=[type_])
        return low.emit(call, operands.out)
