"""What every reader of checkpoints returns: the model's configuration, and how to read each tensor when wanted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from ...ir.errors import QuantizationError
from ...ir.quantization import QuantizedWeight

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Stored(Generic[T]):
    """A tensor on disk, of which the `shape` is known before it is read by calling this."""

    shape: tuple[int, ...]
    read: Callable[[], T]

    def __call__(self) -> T:
        return self.read()


Quantized = Stored[QuantizedWeight]
Plain = Stored[torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A quantised model on disk. Nothing but names and shapes has been read; each call reads and converts one tensor.

    config: of Transformers, without `quantization_config`. Whether it fits the tensors, nobody has asked yet.
    quantized: matrices of linear layers, `[N, K]`, by the name that the parameter has in Transformers' model
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
