"""Timings: what counts as prefill and as decode, and in which order candidates run."""

import pytest
import torch
from lutra.tuning.speed import Speed, Timing, TokenClock, alternate, time_generate, time_steps
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def test_speeds_are_tokens_over_seconds():
    timing = Timing(100, 0.5, (0.1, 0.3))
    assert timing.prefill_speed == pytest.approx(200)
    assert timing.decode_speed == pytest.approx(5)
    assert timing.seconds == pytest.approx(0.9)


def test_speed_is_the_median_over_rounds():
    timings = [Timing(10, seconds, (seconds,)) for seconds in (1.0, 2.0, 50.0)]
    assert Speed.over(timings) == Speed(5.0, 0.5)


def test_generate_is_timed_from_the_prompt_to_each_token(model: LlamaForCausalLM):
    timing = time_generate(model, torch.randint(0, 64, (1, 7)), 5, cache_implementation="static")
    assert timing.prompt_tokens == 7 and len(timing.token_seconds) == 4
    assert min(timing.prefill_seconds, *timing.token_seconds) > 0


def test_a_streamer_behind_the_clock_receives_everything():
    received: list[object] = []

    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            received.append(value.tolist())

        def end(self) -> None:
            received.append("end")

    clock = TokenClock(Streamer())
    for value in (torch.tensor([[1, 2]]), torch.tensor([3])):
        clock.put(value)
    clock.end()
    assert received == [[[1, 2]], [3], "end"]


def test_steps_take_the_greedy_path_of_generate_and_a_cache_can_be_used_again(model: LlamaForCausalLM):
    ids = torch.randint(0, 64, (1, 6))
    expected = model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)[0, 6:].tolist()
    cache = StaticCache(config=model.config, max_cache_len=14)
    fed: list[list[int]] = []

    def forward(input_ids: torch.Tensor, **keywords: object) -> object:
        fed.append(input_ids[0].tolist())
        return model(input_ids=input_ids, **keywords)

    for _ in range(2):
        fed.clear()
        timing = time_steps(forward, ids, 8, cache)
        assert fed == [ids[0].tolist(), *([token] for token in expected[:-1])]
        assert len(timing.token_seconds) == 7


def test_candidates_take_turns():
    order: list[str] = []
    results = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in results.items()} == {"a": 3, "b": 3}
