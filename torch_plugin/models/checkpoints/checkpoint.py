"""What every reader of checkpoints returns: the model's configuration, and how to read each tensor when wanted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ....ir.errors import QuantizationError
from ....ir.weights.formats import QuantizedWeight

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Quantized:
    """A matrix of codes on disk, `[N, K]`, which a call reads and converts."""

    shape: tuple[int, ...]
    read: Callable[[], QuantizedWeight]

    def __call__(self) -> QuantizedWeight:
        return self.read()


@dataclass(frozen=True)
class Plain:
    """Any other tensor on disk, which a call reads. dtype: of what the call returns; None: one that torch lacks."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    read: Callable[[], torch.Tensor]

    def __call__(self) -> torch.Tensor:
        return self.read()


@dataclass(frozen=True)
class Checkpoint:
    """A quantised model on disk. Nothing but names and shapes has been read; each call reads and converts one tensor.

    config: of Transformers, without `quantization_config`. Whether it fits the tensors has not been asked yet.
    quantized: matrices of linear layers, by the name that the parameter has in Transformers' model
        (`model.layers.0.mlp.down_proj.weight`).
    plain: every other tensor by its name there, in the type that it is stored in; float32 where it has to be
        computed from blocks (embeddings in a GGUF file).
    source: a word for messages: "GPTQ", "AWQ", "GGUF".
    """

    config: "PreTrainedConfig"
    quantized: Mapping[str, Quantized]
    plain: Mapping[str, Plain]
    source: str


def named(where: str, read: Callable[[], QuantizedWeight]) -> Callable[[], QuantizedWeight]:
    """`read`, whose errors say `where` the weight is: it knows tensors only."""

    def reading() -> QuantizedWeight:
        try:
            return read()
        except QuantizationError as error:
            raise QuantizationError(f"{where}: {error}") from None

    return reading
