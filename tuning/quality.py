"""What a change to a model costs in quality, on real text: perplexity, KL divergence and top-1 agreement in one pass.

Speed is never reported without it (DESIGN.md section 8). Statistics are taken from float32 logits and summed in Python
floats, whatever dtype the models compute in.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, log_softmax

Model = Callable[[torch.Tensor], Any]
"""Token ids int64 `[1, S]` -> logits `[1, S, V]`, or an output that carries them as `.logits`; a module is one."""


@dataclass(frozen=True)
class Quality:
    """A candidate against a reference over `tokens` predicted positions.

    perplexity, reference_perplexity: exp of the mean negative log-likelihood. kl_divergence: mean KL(reference ||
    candidate) a position, in nats. top1_agreement: share of positions where both give the same token the most."""

    perplexity: float
    reference_perplexity: float
    kl_divergence: float
    top1_agreement: float
    tokens: int


def held_out_windows(tokens: torch.Tensor, length: int, limit: int | None = None) -> torch.Tensor:
    """Non-overlapping windows `[W, length]` of token ids `[T]`; with `limit`, that many, spread evenly over the text.

    Raises `ValueError` for windows shorter than 2 tokens and for a text that does not fill one window."""
    if length < 2:
        raise ValueError(f"a window of {length} tokens predicts nothing: use 2 or more")
    if len(tokens) < length:
        raise ValueError(f"the text has {len(tokens)} tokens, fewer than one window of {length}")
    windows = tokens[: len(tokens) // length * length].reshape(-1, length)
    if limit is None or limit >= len(windows):
        return windows
    return windows[torch.linspace(0, len(windows) - 1, limit).round().long()]


def negative_log_likelihood(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """float32 `[S - 1]`: minus the log-probability that `logits [S, V]` give to each next one of `tokens [S]`."""
    return cross_entropy(logits[:-1].float(), tokens[1:], reduction="none")


def kl_divergence(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """float32 `[S]`: KL(softmax(reference) || softmax(candidate)) in nats, for logits `[S, V]`."""
    p, q = log_softmax(reference.float(), -1), log_softmax(candidate.float(), -1)
    return (p.exp() * (p - q)).sum(-1)


def top1_agreement(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """bool `[S]`: both logits `[S, V]` have their greatest value at the same token."""
    return reference.argmax(-1) == candidate.argmax(-1)


@torch.no_grad()
def perplexity(model: Model, windows: torch.Tensor, progress: Callable[[int, int], None] | None = None) -> float:
    """Perplexity of `model` over `windows [W, S]` of token ids; `progress(done, total)` after each window."""
    total = 0.0
    for index, window in enumerate(windows):
        total += negative_log_likelihood(_logits(model, window), window).sum().item()
        if progress is not None:
            progress(index + 1, len(windows))
    return math.exp(total / _predictions(windows))


@torch.no_grad()
def compare(
    candidate: Model,
    reference: Model,
    windows: torch.Tensor,
    progress: Callable[[int, int], None] | None = None,
) -> Quality:
    """`candidate` against `reference` over `windows [W, S]` of token ids; `progress(done, total)` after each window.

    The first S - 1 positions of a window count, the ones whose next token is known. Raises `ValueError` when the two
    give logits of different shapes."""
    own = other = divergence = 0.0
    agreed = 0
    for index, window in enumerate(windows):
        p, q = _logits(reference, window), _logits(candidate, window)
        if p.shape != q.shape:
            raise ValueError(f"the candidate's logits are {list(q.shape)}, the reference's {list(p.shape)}")
        own += negative_log_likelihood(q, window).sum().item()
        other += negative_log_likelihood(p, window).sum().item()
        divergence += kl_divergence(p[:-1], q[:-1]).sum().item()
        agreed += int(top1_agreement(p[:-1], q[:-1]).sum())
        if progress is not None:
            progress(index + 1, len(windows))
    count = _predictions(windows)
    return Quality(math.exp(own / count), math.exp(other / count), divergence / count, agreed / count, count)


def _logits(model: Model, window: torch.Tensor) -> torch.Tensor:
    """Logits float32 `[S, V]` of one window."""
    output = model(window[None])
    return getattr(output, "logits", output)[0].float()


def _predictions(windows: torch.Tensor) -> int:
    return len(windows) * (windows.shape[1] - 1)
