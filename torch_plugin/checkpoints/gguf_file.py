"""GGUF files of architecture `llama` as checkpoints under the names of Transformers, mapped into memory."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...ir.errors import CheckpointError
from ...ir.quantization import QuantizedWeight
from .checkpoint import Checkpoint, Plain, Quantized, named
from .gguf import KINDS, from_gguf
from .gguf_config import llama_config

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FREQUENCIES = "rope_freqs.weight"
"""Goes into the configuration."""


def read_gguf(path: Path) -> Checkpoint:
    """The checkpoint in a `.gguf` file; raises `CheckpointError`.

    Linear layers must be of a type in `gguf.KINDS`, or in floating point. Embeddings, and an output layer of another
    type (llama.cpp keeps it in Q6_K), are computed in float32 by `gguf`."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise CheckpointError(f"{path}: GGUF files are read with gguf: pip install gguf") from None
    try:
        reader = GGUFReader(path)
    except (ValueError, KeyError, OSError, IndexError) as error:
        raise CheckpointError(f"{path} is not a whole GGUF file: {error}") from None
    if reader.byte_order != "I":
        raise CheckpointError(
            f"{path} has the bytes of its numbers in the other order: convert it on a machine like this"
        )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise CheckpointError(f"{path} has no token_embd.weight: it is no language model")
    frequencies = tensors.pop(_FREQUENCIES, None)
    try:
        config = llama_config(
            metadata={key: field.contents() for key, field in reader.fields.items() if "tokenizer.ggml.to" not in key},
            tensors=tensors.keys(),
            vocabulary=int(tensors["token_embd.weight"].shape[-1]),
            frequencies=None if frequencies is None else _floating(frequencies),
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    quantized: dict[str, Quantized] = {}
    plain: dict[str, Plain] = {}
    for name, tensor in tensors.items():
        layer, parameter = _parameter(name, path)
        order = _row_order(int(tensor.shape[-1]), heads[layer]) if layer in heads else None
        kind = tensor.tensor_type.name
        if kind in KINDS and layer != "token_embd":
            quantized[parameter] = named(f"{path}: {name}", partial(_quantized, tensor, order))
        elif kind in _FLOATING:
            plain[parameter] = partial(_floating, tensor, order)
        elif layer in ("token_embd", "output"):
            plain[parameter] = partial(_computed, tensor, path)
        else:
            raise CheckpointError(
                f"{path}: {name} is of type {kind}, which cannot be read without quantising again: "
                f"linear layers may be {', '.join((*KINDS, *_FLOATING))}"
            )
    return Checkpoint(config, quantized, plain, "GGUF")


def _parameter(name: str, path: Path) -> tuple[str, str]:
    """GGUF's name of a layer without its block, and the parameter's name in Transformers."""
    block = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if block is not None:
        number, layer, suffix = block.groups()
        module = (_TOP if number is None else _BLOCK).get(layer)
        if module is not None:
            prefix = "" if number is None else f"model.layers.{number}."
            return layer, f"{prefix}{module}.{suffix}"
    raise CheckpointError(f"{path}: a llama model of Transformers has no place for tensor {name}")


def _row_order(rows: int, heads: int) -> torch.Tensor:
    """Which row of GGUF each row of Transformers is, in attn_q and attn_k.

    GGUF has the two dimensions that turn together side by side, Transformers has them half a head apart."""
    return torch.arange(rows).reshape(heads, -1, 2).transpose(1, 2).flatten()


def _bytes(tensor: Any) -> torch.Tensor:
    """A copy of what the file holds: torch knows no memory that cannot be written."""
    return torch.from_numpy(np.array(tensor.data))


def _quantized(tensor: Any, order: torch.Tensor | None) -> QuantizedWeight:
    rows = _bytes(tensor)
    return from_gguf(rows if order is None else rows[order], tensor.tensor_type.name)


def _floating(tensor: Any, order: torch.Tensor | None = None) -> torch.Tensor:
    values = _FLOATING[tensor.tensor_type.name](_bytes(tensor))
    return values if order is None else values[order]


def _computed(tensor: Any, path: Path) -> torch.Tensor:
    from gguf.quants import dequantize

    try:
        return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type))
    except NotImplementedError:
        kind = tensor.tensor_type.name
        raise CheckpointError(f"{path}: {tensor.name} is of type {kind}, which gguf cannot compute") from None


_FLOATING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "F32": lambda values: values,
    "F16": lambda values: values,
    "BF16": lambda values: values.view(torch.bfloat16),  # numpy has no such type: the reader shows bytes
}
