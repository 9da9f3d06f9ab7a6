"""Checkpoints that others quantised, read code by code: GPTQ, AWQ, torchao's int4 tensors, GGUF."""
