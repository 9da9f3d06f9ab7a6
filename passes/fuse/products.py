"""What the rewrites of linears share: products read plain or quantised weights, and their input or tables of it."""

from typing import Any

from ...ir.rewriting import activations_of, build, paths, set_activations

NAMES = ("lutra.linear", "lutra.table_linear")


def with_operands(
    linear: Any, rewriter: Any, at: Any, weight: Any, type_: Any, *, path: tuple[str, ...] | None = None, **extra: Any
) -> Any:
    """A product like `linear` before `at`, over `weight`; extra: its bias and residual, where it has them."""
    label = "|".join(paths(linear) if path is None else path)
    given = {key: value for key, value in extra.items() if value is not None}
    new = build(type(linear), rewriter, at, linear.operation.operands[0], weight, type_, path=label, **given)
    if (form := activations_of(linear)) is not None:
        set_activations(new, form)
    return new
