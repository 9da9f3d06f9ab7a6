"""Models in miniature with random weights, as fixtures: `make_model` and `tokens`; experts alone."""

from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import nn

from .architectures import DECODERS, VOCABULARY, Sizes

SIZES = Sizes(heads=4, head_size=16, features=128)
"""None of them is another's, and groups of 32 and 64 fit."""
LAYERS = SIZES.layers

_OTHERS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**SIZES.common())),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=VOCABULARY, n_embd=SIZES.hidden, n_layer=LAYERS, n_head=SIZES.heads, n_positions=64)
    ),
}


@pytest.fixture
def make_model() -> Callable[..., nn.Module]:
    """`make_model("llama")`: fresh random weights, of norms and biases too, so that none drops out of a result."""

    def make(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        model = (_OTHERS[name]() if name in _OTHERS else DECODERS[name].make(SIZES)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
                else:
                    parameter.mul_(3)
        return model.to(dtype)

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    """Token ids [2, 7]."""
    return torch.randint(3, VOCABULARY, (2, 7))


class Experts(nn.Module):
    """Four matrices `[96, 128]`, each for the rows up to its entry of `offsets`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 96, 128))

    def forward(self, x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return torch.ops.transformers.grouped_mm_fallback(x, self.weight.transpose(1, 2), offsets)
