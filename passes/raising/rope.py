"""Rotary embedding to `lutra.rope` over tables that all layers share.

    %a = mul(%x, unsqueeze(%cos, 1))
    %b = mul(rotate_half(%x), unsqueeze(%sin, 1))          =>      %y = lutra.rope(%x, %cos, %sin) {pairs = "halves"}
    %y = add(%a, %b)

Models write it in three ways: with `rotate_half(x) = cat(-x[D/2:], x[:D/2])` (Llama) or with the sign on the other half
(nanochat, whose table is negated here); with pairs of adjacent columns, `stack(-x[1::2], x[0::2])` (GPT-J, Cohere,
GLM); half by half, `cat(a * c - b * s, b * c + a * s)` over tables of D/2 columns, where a and b are halves of x
(gpt-oss) or its even and odd columns (DeepSeek). All round as the model does."""

from typing import Any

from ...ir.ops import RopeOp
from ...ir.patterns import Pattern
from ...ir.rewriting import build, build_torch, constant, defined_by, list_type, move_behind, shape_of, users, vtensor
from ...ir.types import tensor_type
from ..matching import both_orders, cast_source, dimension, is_fused_float, list_of, section_of


def _pair(first: Any, second: Any) -> tuple[Any, str] | None:
    """`(x, "halves")` when the values are the lower and upper half of x's last dimension, `(x, "adjacent")` when they
    are its even and odd columns."""
    a, b = section_of(first), section_of(second)
    if a is None or b is None or a.source != b.source or a.dim != b.dim or a.size % 2:
        return None
    if a.dim != len(shape_of(a.source) or ()) - 1:
        return None
    size, half = a.size, a.size // 2
    if (a.range, b.range) == ((0, half, 1), (half, size, 1)):
        return a.source, "halves"
    if (a.range, b.range) == ((0, size, 2), (1, size, 2)):
        return a.source, "adjacent"
    return None


def _joined(value: Any) -> tuple[Any, Any, str] | None:
    """`(a, b, "halves")` when `value` is `cat((a, b), -1)`; `(a, b, "adjacent")` when it is `stack((a, b), -1)` with
    both last dimensions made one."""
    rank = len(shape_of(value) or ())
    cat = defined_by(value, "aten.cat")
    view = defined_by(value, "aten.view", "aten._unsafe_view", "aten.reshape", "aten.flatten.using_ints")
    stack = view and defined_by(view.operands[0], "aten.stack")
    join = cat or stack
    parts = join and list_of(join.operands[0])
    if join is None or parts is None or len(parts) != 2 or parts[0].type != parts[1].type:
        return None
    part = shape_of(parts[0]) or ()
    if not part or part[-1] is None or shape_of(value) != (*part[:-1], 2 * part[-1]):
        return None
    if dimension(join.operands[1], rank + (cat is None)) != rank - (cat is not None):
        return None
    return parts[0], parts[1], "halves" if cat is not None else "adjacent"


def _turned(value: Any) -> tuple[Any, str, bool] | None:
    """`(x, pairs, negated)` when `value` is x turned by 90 degrees in each pair, or by -90 (`negated`)."""
    joined = _joined(value)
    if joined is None:
        return None
    first, second, form = joined
    for number, negative in enumerate((first, second)):
        neg = defined_by(negative, "aten.neg")
        if neg is None:
            continue
        high, low = (neg.operands[0], second) if number == 0 else (first, neg.operands[0])
        found = _pair(low, high)
        if found is not None and found[1] == form:
            return found[0], form, number == 1
    return None


def _fits(table: Any, x: Any, columns: int) -> bool:
    """`table` is `[B or 1, 1, S, columns]` beside x `[B, H, S, D]`, in a dtype that does not widen x's."""
    wanted, shape = shape_of(x) or (), shape_of(table) or ()
    if len(shape) != 4 or len(wanted) != 4 or not is_fused_float(x, table):
        return False
    return shape[0] in (1, wanted[0]) and shape[1:] == (1, wanted[2], columns)


def _table(value: Any, rewriter: Any, op: Any) -> Any:
    """The `[B, S, D]` table behind `value` `[B, 1, S, D]`."""
    unsqueeze = defined_by(value, "aten.unsqueeze")
    if unsqueeze is not None and constant(unsqueeze.operands[1]) in (1, -3):
        return unsqueeze.operands[0]
    batch, _, *rest = tensor_type(value.type).shape
    return _shared("aten.squeeze.dim", rewriter, op, value, (1,), vtensor((batch, *rest), value))


def _replace(op: Any, rewriter: Any, x: Any, tables: tuple[Any, Any], pairs: str) -> bool:
    new = build(RopeOp, rewriter, op, x, *tables, pairs, op.operation.results[0].type)
    rewriter.replace_op(op, new.operation)
    return True


class Rope(Pattern):
    """`x * cos + turned(x) * sin` over tables `[B, 1, S, D]` -> `lutra.rope`.

    %x: f32[2,4,3,8], %cos: f32[1,3,8], %sin: f32[1,3,8]
    %c = aten.unsqueeze(%cos, 1) : f32[1,1,3,8]
    %s = aten.unsqueeze(%sin, 1) : f32[1,1,3,8]
    %low = aten.slice.Tensor(%x, 3, 0, 4, 1) : f32[2,4,3,4]
    %high = aten.slice.Tensor(%x, 3, 4, 8, 1) : f32[2,4,3,4]
    %minus = aten.neg(%high)
    %turned = aten.cat([%minus, %low], -1) : f32[2,4,3,8]
    %straight = aten.mul.Tensor(%x, %c)
    %crossed = aten.mul.Tensor(%turned, %s)
    %r = aten.add.Tensor(%straight, %crossed, 1)
    =>
    %r = lutra.rope(%x, %cos, %sin) {pairs = "halves"}
    """

    roots = ("torch.aten.add.Tensor",)

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        result = op.operation.results[0]
        shape = shape_of(result) or ()
        if len(shape) != 4 or shape[3] is None or constant(op.operation.operands[2]) != 1:
            return False
        for straight, crossed in both_orders(op.operation):
            left, right = defined_by(straight, "aten.mul.Tensor"), defined_by(crossed, "aten.mul.Tensor")
            if left is None or right is None:
                return False
            for turned, sin in both_orders(right):
                found = _turned(turned)
                source = cast_source(turned) if found is None else None
                if source is not None:  # the model turned x before it was widened
                    found = _turned(source)
                if found is None:
                    continue
                for x, cos in both_orders(left):
                    if x.type != result.type or not (_fits(cos, x, shape[3]) and _fits(sin, x, shape[3])):
                        continue
                    if turned.type != x.type or (cast_source(x) if source is not None else x) != found[0]:
                        continue
                    tables = _table(cos, rewriter, op), _table(sin, rewriter, op)
                    if found[2]:
                        tables = tables[0], _shared("aten.neg", rewriter, op, tables[1], (), tables[1].type)
                    return _replace(op, rewriter, x, tables, found[1])
        return False


class SplitRope(Pattern):
    """`cat((a * c - b * s, b * c + a * s), -1)` over tables `[B, 1, S, D/2]` -> `lutra.rope`.

    %x: f32[2,4,3,8], %cos: f32[1,3,4], %sin: f32[1,3,4]
    %c = aten.unsqueeze(%cos, 1) : f32[1,1,3,4]
    %s = aten.unsqueeze(%sin, 1) : f32[1,1,3,4]
    %a = aten.slice.Tensor(%x, 3, 0, 4, 1) : f32[2,4,3,4]
    %b = aten.slice.Tensor(%x, 3, 4, 8, 1) : f32[2,4,3,4]
    %ac = aten.mul.Tensor(%a, %c)
    %bs = aten.mul.Tensor(%b, %s)
    %bc = aten.mul.Tensor(%b, %c)
    %as = aten.mul.Tensor(%a, %s)
    %minus = aten.sub.Tensor(%ac, %bs, 1)
    %plus = aten.add.Tensor(%bc, %as, 1)
    %r = aten.cat([%minus, %plus], -1) : f32[2,4,3,8]
    =>
    %s2 = aten.cat([%sin, %sin], -1) : f32[1,3,8]
    %c2 = aten.cat([%cos, %cos], -1) : f32[1,3,8]
    %r = lutra.rope(%x, %c2, %s2) {pairs = "halves"}
    """

    roots = ("torch.aten.cat",)

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        joined = _joined(op.operation.results[0])
        minus = joined and defined_by(joined[0], "aten.sub.Tensor")
        plus = joined and defined_by(joined[1], "aten.add.Tensor")
        if not minus or not plus or constant(minus.operands[2]) != 1 or constant(plus.operands[2]) != 1:
            return False
        ac, bs = (defined_by(value, "aten.mul.Tensor") for value in list(minus.operands)[:2])
        others = [mul for value in list(plus.operands)[:2] if (mul := defined_by(value, "aten.mul.Tensor")) is not None]
        if ac is None or bs is None:
            return False
        result = op.operation.results[0]
        shape = shape_of(result) or ()
        for a, cos in both_orders(ac):
            for b, sin in both_orders(bs):
                found = _pair(a, b)
                if found is None or found[0].type != result.type or len(shape) != 4 or shape[3] is None:
                    continue
                if not all(_fits(table, found[0], shape[3] // 2) for table in (cos, sin)):
                    continue
                wanted = [{b, cos}, {a, sin}]
                if [set(mul.operands) for mul in others] not in (wanted, wanted[::-1]):
                    continue
                tables = tuple(_doubled(_table(table, rewriter, op), rewriter, op) for table in (cos, sin))
                pairs = "adjacent_to_halves" if found[1] == "adjacent" else found[1]
                return _replace(op, rewriter, found[0], tables, pairs)
        return False


def _doubled(table: Any, rewriter: Any, op: Any) -> Any:
    """`cat((table, table), -1)`."""
    *rest, columns = tensor_type(table.type).shape
    parts = _shared("prim.ListConstruct", rewriter, op, table, (_SOURCE,), list_type())
    return _shared("aten.cat", rewriter, op, parts, (-1,), vtensor((*rest, 2 * (columns or 0)), table))


_SOURCE = "source"


def _shared(name: str, rewriter: Any, op: Any, source: Any, others: tuple[int | str, ...], type_: Any) -> Any:
    """`name(source, *others)` for all layers: what is there before `op`, or a new one right behind `source`.

    others: integers, or `_SOURCE` for the same value again."""
    for user in users(source):
        if user.operation.name == f"torch.{name}" and user.operation.is_before_in_block(op.operation):
            first, *rest = user.operation.operands
            if first == source and [_SOURCE if v == source else constant(v) for v in rest] == list(others):
                return user.operation.results[0]
    operands = [source if other == _SOURCE else other for other in others]
    result = build_torch(name, rewriter, op, [source, *operands], type_)
    move_behind(result.owner, source)
    for operand in list(result.owner.operands)[1:]:
        if operand != source:
            move_behind(operand.owner, source)
    return result


ROPE = Rope() + SplitRope()
