"""Quality metrics against their definitions, on random logits."""

import math

import pytest
import torch
from lutra.tuning.quality import compare, held_out_windows, kl_divergence, perplexity, top1_agreement

VOCABULARY = 50


class Table(torch.nn.Module):
    """A model whose logits depend on the current token alone."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.logits = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.logits[ids]


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(7))


def test_perplexity_is_the_exponential_of_the_mean_negative_log_likelihood_in_float64(windows: torch.Tensor):
    model = Table(0)
    probabilities = model(windows).double().softmax(-1)
    taken = probabilities[:, :-1].gather(-1, windows[:, 1:, None])
    assert perplexity(model, windows) == pytest.approx(math.exp(-taken.log().mean()), rel=1e-5)


def test_one_pass_gives_what_the_definitions_give_in_float64(windows: torch.Tensor):
    candidate, reference = Table(1), Table(2)
    quality = compare(candidate, reference, windows)
    p, q = (model(windows[:, :-1]).double().log_softmax(-1) for model in (reference, candidate))
    assert quality.kl_divergence == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-5)
    assert quality.top1_agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    assert quality.perplexity == pytest.approx(perplexity(candidate, windows))
    assert quality.reference_perplexity == pytest.approx(perplexity(reference, windows))
    assert quality.tokens == 3 * 19


def test_a_model_agrees_with_itself_entirely(windows: torch.Tensor):
    quality = compare(Table(3), Table(3), windows)
    assert quality.kl_divergence == pytest.approx(0, abs=1e-7)
    assert quality.top1_agreement == 1
    assert quality.perplexity == quality.reference_perplexity


def test_shifting_all_logits_changes_nothing():
    logits = torch.randn(30, VOCABULARY)
    torch.testing.assert_close(kl_divergence(logits, logits + 5), torch.zeros(30), atol=1e-5, rtol=0)
    assert top1_agreement(logits, logits + 5).all()


def test_bfloat16_logits_are_evaluated_in_float32(windows: torch.Tensor):
    model = Table(4)
    model.logits = model.logits.bfloat16()
    exact = Table(4)
    exact.logits = model.logits.double()
    assert perplexity(model, windows) == pytest.approx(perplexity(exact, windows), rel=1e-5)


def test_outputs_that_carry_logits_are_understood(windows: torch.Tensor):
    model = Table(5)

    class Output:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

    assert perplexity(lambda ids: Output(model(ids)), windows) == perplexity(model, windows)


def test_progress_is_told_after_each_window(windows: torch.Tensor):
    seen: list[tuple[int, int]] = []
    compare(Table(0), Table(1), windows, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_windows_do_not_overlap_and_a_limit_spreads_them_over_the_text():
    tokens = torch.arange(107)
    assert torch.equal(held_out_windows(tokens, 10).flatten(), tokens[:100])
    assert held_out_windows(tokens, 10, limit=3)[:, 0].tolist() == [0, 40, 90]
    assert len(held_out_windows(tokens, 10, limit=50)) == 10


def test_texts_and_windows_that_are_too_short_are_errors():
    with pytest.raises(ValueError, match="has 5 tokens, fewer than one window of 10"):
        held_out_windows(torch.arange(5), 10)
    with pytest.raises(ValueError, match="window of 1 tokens"):
        held_out_windows(torch.arange(5), 1)


def test_models_of_different_vocabularies_cannot_be_compared(windows: torch.Tensor):
    with pytest.raises(ValueError, match="the candidate's logits are"):
        compare(lambda ids: Table(0)(ids)[..., :40], Table(0), windows)
