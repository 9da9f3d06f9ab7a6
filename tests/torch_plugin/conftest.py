"""What tests of whole models share."""

from typing import Any

import pytest
import torch


@pytest.fixture
def generated() -> Any:
    """`generated(model, ids [1, P])`: tokens `[1, P + 6]` of greedy steps over a static cache, and the logits `[6, V]`
    of the new ones. Nothing is compiled but by the model itself."""

    def run(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keywords = {"cache_implementation": "static", "disable_compile": True, "do_sample": False}
        keywords |= {"return_dict_in_generate": True, "output_logits": True}
        lengths = {"max_new_tokens": 6, "min_new_tokens": 6}
        with torch.no_grad():
            done = model.generate(ids, attention_mask=torch.ones_like(ids), **lengths, **keywords)
        return done.sequences, torch.cat(done.logits)

    return run
