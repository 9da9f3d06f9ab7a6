"""Transformers' packed BitNet layers, which this version of torch cannot compile as they are."""

import sys
from typing import Any


def unwrap_nested_compilation() -> None:
    """Take `torch.compile` off the quantisation inside `BitLinear`: it is part of the graph that is compiled anyway.

    Dynamo inlines it, then guards on the defaults of the function in the class, which is the compiled wrapper that has
    none, and fails ("object of type 'NoneType' has no len()") with every backend. Guards are made after a backend
    returned, so that this comes in time; a class that is not loaded is not in the graph."""
    module = sys.modules.get("transformers.integrations.bitnet")
    layer: Any = getattr(module, "BitLinear", None)
    if layer is None:
        return
    original = getattr(layer.activation_quant, "_torchdynamo_orig_callable", None)
    if original is not None:
        layer.activation_quant = original
