"""GGUF files of architecture `llama` as checkpoints under the names of Transformers, mapped into memory."""

import re
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ....ir.errors import CheckpointError, shown
from ....ir.weights.formats import QuantizedWeight
from ..regular_files import regular_file
from .checkpoint import Checkpoint, Plain, Quantized, named
from .gguf import KINDS, from_gguf
from .gguf_config import llama_config
from .gguf_header import GgufTensor, read_header

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
    if find_spec("gguf") is None:
        raise CheckpointError(f"{path}: GGUF files are read with gguf: pip install gguf")
    regular_file(path, CheckpointError)
    try:
        return _checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def _checkpoint(path: Path) -> Checkpoint:
    file = read_header(path)
    tensors = dict(file.tensors)
    if "token_embd.weight" not in tensors:
        raise CheckpointError("it has no token_embd.weight: it is no language model")
    frequencies = tensors.pop(_FREQUENCIES, None)
    if frequencies is not None and frequencies.kind not in _FLOATING:
        raise CheckpointError(f"{_FREQUENCIES} is of type {frequencies.kind}: {' or '.join(_FLOATING)} would be right")
    config = llama_config(
        metadata=file.metadata,
        tensors=tensors.keys(),
        vocabulary=tensors["token_embd.weight"].shape[0],
        frequencies=None if frequencies is None else _floating(frequencies),
    )
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    quantized: dict[str, Quantized] = {}
    plain: dict[str, Plain] = {}
    for name, tensor in tensors.items():
        layer, parameter = _parameter(name)
        turned = heads.get(layer)
        if turned is not None and tensor.shape[0] % (2 * turned):
            raise CheckpointError(f"{name} has {tensor.shape[0]} rows, which are no whole pairs of {turned} heads")
        if tensor.kind in KINDS and layer != "token_embd":
            if len(tensor.shape) != 2:
                raise CheckpointError(
                    f"{name} is of type {tensor.kind} and of shape {list(tensor.shape)}: only matrices can be quantised"
                )
            quantized[parameter] = Quantized(
                tensor.shape, named(f"{path}: {name}", partial(_quantized, tensor, turned))
            )
        elif tensor.kind in _FLOATING:
            plain[parameter] = Plain(tensor.shape, _FLOATING[tensor.kind], partial(_floating, tensor, turned))
        elif layer in ("token_embd", "output"):
            plain[parameter] = Plain(tensor.shape, torch.float32, partial(_computed, tensor, path))
        else:
            raise CheckpointError(
                f"{name} is of type {tensor.kind}, which cannot be read without quantising again: "
                f"linear layers may be {', '.join((*KINDS, *_FLOATING))}"
            )
    return Checkpoint(config, quantized, plain, "GGUF")


def _parameter(name: str) -> tuple[str, str]:
    """GGUF's name of a layer without its block, and the parameter's name in Transformers."""
    block = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if block is not None:
        number, layer, suffix = block.groups()
        module = (_TOP if number is None else _BLOCK).get(layer)
        if module is not None:
            prefix = "" if number is None else f"model.layers.{number}."
            return layer, f"{prefix}{module}.{suffix}"
    raise CheckpointError(f"a llama model of Transformers has no place for tensor {shown(name)}")


def _row_order(rows: int, heads: int) -> torch.Tensor:
    """Which row of GGUF each row of Transformers is, in attn_q and attn_k.

    GGUF has the two dimensions that turn together side by side, Transformers has them half a head apart."""
    return torch.arange(rows).reshape(heads, -1, 2).transpose(1, 2).flatten()


def _in_order(rows: torch.Tensor, turned: int | None) -> torch.Tensor:
    return rows if turned is None else rows[_row_order(len(rows), turned)]


def _bytes(tensor: GgufTensor) -> torch.Tensor:
    """A copy of what the file holds: torch knows no memory that cannot be written."""
    return torch.from_numpy(np.array(tensor.data))


def _quantized(tensor: GgufTensor, turned: int | None) -> QuantizedWeight:
    return from_gguf(_in_order(_bytes(tensor), turned), tensor.kind)


def _floating(tensor: GgufTensor, turned: int | None = None) -> torch.Tensor:
    return _in_order(_bytes(tensor).view(_FLOATING[tensor.kind]), turned)


def _computed(tensor: GgufTensor, path: Path) -> torch.Tensor:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        return torch.from_numpy(dequantize(tensor.data, GGMLQuantizationType[tensor.kind]))
    except NotImplementedError:
        raise CheckpointError(f"{path}: {tensor.name} is of type {tensor.kind}, which gguf cannot compute") from None


_FLOATING: dict[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
