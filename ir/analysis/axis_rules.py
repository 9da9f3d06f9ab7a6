"""What each operation does with axes: a table from names to rules.

A rule reads the axes of operands, makes those one that the operation takes for one, anchors what it knows, and gives
the axes of each result. Names stand without overload where all overloads have one rule. What has no rule keeps all axes
where torch calls it pointwise; else it has new ones, of which nothing is known.
"""

from functools import cache

import torch

from ..errors import CaptureError
from ..operator_call import overload
from . import axis_products as products
from . import axis_views as views
from .axis_step import Computed, Rule, Step, elementwise, like_first, unknown
from .axis_terms import Dims


def _table(*rows: tuple[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in rows for name in names.split()}


RULES = _table(
    (elementwise, "aten.copy aten.where aten.masked_fill aten.dropout aten.native_dropout"),
    (
        like_first,
        "aten.clone aten._to_copy aten.to prims.convert_element_type aten.contiguous aten.lift_fresh_copy aten.detach "
        "aten.alias aten.cumsum aten.cumprod aten._log_softmax aten.log_softmax aten.triu aten.tril aten.flip "
        "aten.roll aten.masked_scatter aten.scatter aten.scatter_add aten.scatter_reduce aten.slice_scatter "
        "aten.select_scatter aten.sort aten.argsort aten.zeros_like aten.ones_like aten.full_like aten.empty_like "
        "aten.rand_like aten.randn_like aten.group_norm aten.native_group_norm aten.batch_norm "
        "aten._native_batch_norm_legit_no_training",
    ),
    (views.reshape, "aten.view aten._unsafe_view aten.reshape aten.flatten aten.unflatten aten._reshape_alias"),
    (views.permuted, "aten.transpose aten.permute aten.t aten.numpy_T"),
    (views.unsqueeze, "aten.unsqueeze"),
    (views.squeeze, "aten.squeeze"),
    (views.expand, "aten.expand aten.broadcast_to aten.expand_as"),
    (views.repeat, "aten.repeat aten.tile"),
    (views.repeat_interleave, "aten.repeat_interleave"),
    (
        views.cut,
        "aten.slice aten.narrow aten.split aten.split_with_sizes aten.chunk aten.constant_pad_nd aten.pad "
        "aten.avg_pool2d aten.max_pool2d aten.adaptive_avg_pool2d aten.upsample_bicubic2d aten.upsample_bilinear2d "
        "aten.upsample_nearest2d",
    ),
    (views.top, "aten.topk"),
    (views.without, "aten.select aten.unbind"),
    (views.cat, "aten.cat aten.concat"),
    (views.stack, "aten.stack"),
    (
        views.reduced,
        "aten.mean aten.sum aten.amax aten.amin aten.max.dim aten.min.dim aten.argmax aten.argmin aten.var aten.std "
        "aten.all aten.any aten.prod aten.norm aten.linalg_vector_norm aten.logsumexp aten.var_mean aten.std_mean",
    ),
    (views.index, "aten.index"),
    (views.index_put, "aten.index_put"),
    (views.index_select, "aten.index_select"),
    (views.gather, "aten.gather"),
    (views.index_copy, "aten.index_copy aten.index_add"),
    (views.split_features, "lutra.split"),
    (products.linear, "aten.linear lutra.linear"),
    (products.addmm, "aten.addmm"),
    (products.matmul, "aten.matmul aten.mm aten.bmm aten.baddbmm"),
    (products.tables, "lutra.table"),
    (products.table_linear, "lutra.table_linear"),
    (products.grouped_linear, "lutra.grouped_linear"),
    (products.grouped_matmul, "aten._grouped_mm transformers.grouped_mm_fallback"),
    (products.softmax, "aten._softmax aten.softmax"),
    (products.attention, "aten.scaled_dot_product_attention lutra.attention"),
    (products.kv_update, "lutra.kv_update"),
    (products.rope, "lutra.rope"),
    (products.rope_kv_update, "lutra.rope_kv_update"),
    (products.convolution, "aten.convolution aten.conv1d aten.conv2d aten.conv3d"),
    (products.norm, "aten.layer_norm aten.rms_norm aten.native_layer_norm lutra.layer_norm lutra.rms_norm"),
    (products.gate, "lutra.gated_mlp"),
    (products.embedding, "aten.embedding"),
    (products.one_hot, "aten.one_hot"),
)
_END_OF_SCORES = {products.matmul, products.softmax, products.linear, views.reduced, unknown}


def axes_of_results(step: Step) -> list[Dims]:
    """The axes of what `step` gives, by the rule of its name."""
    rule = _rule(step.name)
    if rule not in _END_OF_SCORES:
        for found in (step.scores.products, step.scores.weights):
            found.update({result: found[x] for x in step.tensors if x in found for result in step.results})
    if step.opaque:
        return unknown(step)
    try:
        found = rule(step)
    except Computed:
        return unknown(step)
    return [step.fitted(dims, index) if step.shapes[index] is not None else () for index, dims in enumerate(found)]


@cache
def _rule(name: str) -> Rule:
    rule = RULES.get(name) or RULES.get(".".join(name.split(".")[:2]))
    return rule or (elementwise if _is_pointwise(name) else unknown)


def _is_pointwise(name: str) -> bool:
    try:
        return torch.Tag.pointwise in overload(name).tags
    except CaptureError:
        return False


def keeps_places(name: str) -> bool:
    """An element of a result follows from the one at its place of an operand (in norms from its row), if axes agree."""
    return _rule(name) in _IN_PLACE and "_like" not in name


_IN_PLACE = {elementwise, like_first, products.norm, views.index_put, views.reshape}


def contracts(name: str) -> bool:
    """Every element of a result follows from many of an operand, by weights or by other operands."""
    return _rule(name) in _CONTRACTIONS


_CONTRACTIONS = {
    products.linear,
    products.addmm,
    products.matmul,
    products.table_linear,
    products.grouped_linear,
    products.grouped_matmul,
    products.attention,
    products.convolution,
}
