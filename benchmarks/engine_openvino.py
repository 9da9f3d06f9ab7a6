"""OpenVINO with int4 weights, as a program of its own: `optimum-intel` needs other versions than lutra does.

    python engine_openvino.py '{"config": {...}, "prompt": 128, "new_tokens": 32, "threads": 2, "folder": "..."}'

It answers every line of its input with a line of JSON: first when it is ready, then for each run the seconds of the
prefill and of each token. Its Python needs `optimum-intel[openvino]`, and nothing of lutra.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from transformers import LlamaConfig, LlamaForCausalLM


def export(config: dict[str, Any], folder: Path) -> Path:
    """The compressed model in `folder`, made unless it is there: random weights, symmetric groups of 128."""
    path = folder / "int4" / "openvino_model.xml"
    if not path.exists():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**config)).bfloat16().save_pretrained(folder / "original")
        compression = OVWeightQuantizationConfig(bits=4, sym=True, group_size=128, ratio=1.0)
        model = OVModelForCausalLM.from_pretrained(
            folder / "original", export=True, compile=False, quantization_config=compression
        )
        model.save_pretrained(folder / "int4")
    return path


class OpenVino:
    """One compiled model for the CPU, with the latency hint."""

    def __init__(self, path: Path, threads: int) -> None:
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        self._request = openvino.Core().compile_model(path, "CPU", hints).create_infer_request()

    def run(self, ids: np.ndarray, new_tokens: int) -> list[float]:
        """Seconds of the prefill of `ids [1, P]` and of each greedy token after it."""
        self._request.reset_state()
        times, position, step = [], 0, ids
        for _ in range(new_tokens):
            start = time.perf_counter()
            length = position + step.shape[1]
            logits = self._request.infer(
                {
                    "input_ids": step,
                    "attention_mask": np.ones((1, length), np.int64),
                    "position_ids": np.arange(position, length, dtype=np.int64)[None],
                    "beam_idx": np.zeros(1, np.int32),
                }
            )["logits"]
            step = logits[:, -1].argmax(-1)[:, None].astype(np.int64)
            position = length
            times.append(time.perf_counter() - start)
        return times


def main() -> None:
    """Serve the description in the first argument."""
    # Libraries log to the standard output: they get the standard error, answers keep the real one.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    given = json.loads(sys.argv[1])
    config = given["config"]
    path = export(config, Path(given["folder"]))
    engine = OpenVino(path, given["threads"])
    ids = np.random.default_rng(1).integers(0, config["vocab_size"], (1, given["prompt"]))
    # Embeddings, of which a step reads a row, are int8.
    read = path.with_suffix(".bin").stat().st_size - config["vocab_size"] * config["hidden_size"]
    print(json.dumps({"bytes": read}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(engine.run(ids, given["new_tokens"])), file=answers, flush=True)


if __name__ == "__main__":
    main()
