"""The entry point: `torch.compile(model, backend="lutra", options={...})`.

Registered under the entry-point group `torch_dynamo_backends`, so that torch finds it without an import of lutra.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import fx

from ..ir.torch_private import floats_of_one_frame, lookup_backend
from .capture import capture, needs_gradient, parameter_names
from .inspect.uncompiled import Elsewhere, warn_of_eager_generate
from .model_state import ModelState, state_for
from .models.bitnet import unwrap_nested_compilation
from .nets import warn_once
from .options import Options
from .retracing import trace_as_wanted

warn_of_eager_generate()


def lutra(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
    **unknown: Any,
) -> Callable[..., Any]:
    """Compile one Dynamo graph; called by `torch.compile`, once per graph of the model.

    options: see `Options`. mode: torch's compile modes are hints for its own backend and have no effect here. Raises
    `LutraError` for bad options, recipes or models; a graph that needs gradients goes to
    `options["training_backend"]`."""
    parsed = Options.parse({**(options or {}), **unknown})
    if mode not in (None, "default"):
        warn_once(f"torch.compile(mode={mode!r}) has no effect with the lutra backend", logging.DEBUG)
    if needs_gradient(example_inputs):
        warn_once(
            f"gradients are needed: this graph runs on {parsed.training_backend!r}, not on lutra "
            "(call the model under torch.no_grad() or torch.inference_mode() for inference)",
        )
        state = state_for(example_inputs, parsed)
        for index, name in parameter_names(gm, example_inputs).items():
            if not example_inputs[index].is_meta:  # shapes alone are for the other backend to judge
                state.store.bind(name, example_inputs[index])
        call = lookup_backend(parsed.training_backend)(gm, list(example_inputs))
        return state.went_elsewhere(Elsewhere(call, parsed.training_backend, state))
    unwrap_nested_compilation()
    trace_as_wanted(gm, example_inputs)
    state: ModelState = state_for(example_inputs, parsed)
    with floats_of_one_frame():
        return capture(gm, example_inputs, state.store, partial(state.compile, parsed), partial(state.refuse, parsed))
