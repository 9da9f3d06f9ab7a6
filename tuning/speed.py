"""Tokens per second of prefill and decode: through `model.generate`, or through a bare loop of greedy steps.

`generate` is what a user waits for; its own bookkeeping (about a millisecond a token) is part of it. The loop times
the model alone. Candidates take turns, A B A B, so that a machine that slows down slows all of them; medians are
taken over the rounds.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


@dataclass(frozen=True)
class Timing:
    """One generation: the prompt's length, seconds until the first new token, and seconds for each later one."""

    prompt_tokens: int
    prefill_seconds: float
    token_seconds: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """From the prompt to the last token."""
        return self.prefill_seconds + sum(self.token_seconds)

    @property
    def prefill_speed(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_speed(self) -> float:
        """New tokens per second, the first left out; nan when there is only the first."""
        return len(self.token_seconds) / sum(self.token_seconds) if self.token_seconds else float("nan")


@dataclass(frozen=True)
class Speed:
    """Tokens per second: medians over rounds."""

    prefill: float
    decode: float

    @staticmethod
    def over(timings: Sequence[Timing]) -> "Speed":
        """Medians of `timings`, one or more."""
        return Speed(median(t.prefill_speed for t in timings), median(t.decode_speed for t in timings))


class TokenClock:
    """A streamer for `generate` that notes when each token arrives, and hands it on to `inner` (a `TextStreamer`)."""

    def __init__(self, inner: Any = None) -> None:
        self._inner = inner
        self._times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate` with the prompt first, then with each new token."""
        self._times.append(time.perf_counter())
        if self._inner is not None:
            self._inner.put(value)

    def end(self) -> None:
        """Called by `generate` after the last token."""
        if self._inner is not None:
            self._inner.end()

    def timing(self, prompt_tokens: int) -> Timing:
        """The times between arrivals. The prompt arrives just before the prefill starts."""
        return _timing(prompt_tokens, self._times)


def time_generate(model: Any, ids: torch.Tensor, new_tokens: int, streamer: Any = None, **keywords: Any) -> Timing:
    """One greedy `model.generate` of exactly `new_tokens` after the prompt `ids [1, P]`; `keywords` are its own."""
    clock = TokenClock(streamer)
    lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    mask = torch.ones_like(ids)
    model.generate(ids, attention_mask=mask, do_sample=False, streamer=clock, **lengths, **keywords)
    return clock.timing(ids.shape[1])


@torch.no_grad()
def time_steps(forward: Callable[..., Any], ids: torch.Tensor, new_tokens: int, cache: Any) -> Timing:
    """Greedy steps over `cache` (a `StaticCache`, emptied first): the prompt `ids [1, P]`, then token by token.

    `forward`: a Transformers causal language model or its compiled `forward`."""
    cache.reset()
    times = [time.perf_counter()]
    step = ids
    for _ in range(new_tokens):
        logits = forward(input_ids=step, cache=cache, use_cache=True, logits_to_keep=1).logits
        step = logits[:, -1].argmax(-1, keepdim=True)
        times.append(time.perf_counter())
    return _timing(ids.shape[1], times)


def _timing(prompt_tokens: int, times: Sequence[float]) -> Timing:
    prefill, *tokens = (after - before for before, after in pairwise(times))
    return Timing(prompt_tokens, prefill, tuple(tokens))


def alternate(
    candidates: Mapping[str, Callable[[], Result]],
    rounds: int,
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, list[Result]]:
    """Run every candidate once a round, in order, `rounds` times: name -> results, one a round.

    `progress(name, round)` is called before each run."""
    results: dict[str, list[Result]] = {name: [] for name in candidates}
    for number in range(rounds):
        for name, run in candidates.items():
            if progress is not None:
                progress(name, number)
            results[name].append(run())
    return results
