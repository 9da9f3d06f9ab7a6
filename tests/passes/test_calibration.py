"""Statistics of real inputs: sums over the batches, shared by layers with the same input, gradients of the loss."""

from typing import Any

import pytest
import torch
from lutra import calibrate
from lutra.ir.errors import CalibrationError
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM


def llama() -> LlamaForCausalLM:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).eval()


def test_gram_matrices_are_sums_over_all_batches():
    model = llama()
    batches = [torch.randint(0, 64, (2, 9)), torch.randint(0, 64, (1, 5))]
    seen = []
    layer = model.model.layers[1].mlp.down_proj
    handle = layer.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].detach().reshape(-1, 64)))
    calibration = calibrate(model, batches)
    handle.remove()
    x = torch.cat(seen).double()
    entry = calibration.of(layer.weight)
    assert entry is not None and entry.rows == 23
    assert torch.allclose(entry.gram.double(), x.T @ x, rtol=1e-4, atol=1e-4)
    attention = model.model.layers[0].self_attn
    q, k = calibration.of(attention.q_proj.weight), calibration.of(attention.k_proj.weight)
    assert q is not None and k is not None and q.gram is k.gram
    assert len(calibration) == 15
    assert calibration.of(model.model.embed_tokens.weight) is None
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_sensitivity_is_the_mean_squared_gradient_of_the_loss():
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    x = torch.randn(7, 6)
    calibration = calibrate(model, [x], loss=lambda y: y.square().sum())
    inner = model[0](x).detach().requires_grad_()
    model[2](model[1](inner)).square().sum().backward()
    entry = calibration.of(model[0].weight)
    assert entry is not None and inner.grad is not None
    assert torch.allclose(entry.sensitivity, inner.grad.square().mean(0), rtol=1e-5)


def test_fingerprints_follow_the_inputs():
    model, tokens = llama(), torch.randint(0, 64, (1, 6))
    prints = {calibrate(model, [t]).fingerprint for t in (tokens, tokens.clone(), tokens.roll(1))}
    assert len(prints) == 2
    by_name = calibrate(model, [{"input_ids": tokens}])
    assert by_name.fingerprint in prints


def test_transposed_weights_of_gpt2_are_linear_layers_too():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=32)).eval()
    entry = calibrate(model, [torch.randint(0, 64, (1, 8))]).of(model.transformer.h[0].attn.c_attn.weight)
    assert entry is not None and entry.gram.shape == (32, 32) and entry.sensitivity.shape == (96,)


def test_what_cannot_be_calibrated_is_refused():
    with pytest.raises(CalibrationError, match="no linear layer"):
        calibrate(llama(), [])
    with pytest.raises(CalibrationError, match="no logits"):
        calibrate(nn.Linear(4, 4), [torch.randn(2, 4)])
