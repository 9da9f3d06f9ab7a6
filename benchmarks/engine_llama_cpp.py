"""llama.cpp through `llama-cpp-python`, on a GGUF file of random weights.

A file holds blocks of random bytes with small scales: speed does not depend on what they mean. Every matrix has the
same type, the head included.
"""

import ctypes
import time
from pathlib import Path
from typing import Any

import numpy as np
from engines import SHAPES
from lutra import LutraError
from lutra.tuning.memory import Peak, resident
from lutra.tuning.speed import Timing

SCALES_AT = {"Q4_0": (0,), "Q8_0": (0,), "Q2_K": (80, 82), "TQ1_0": (52,), "TQ2_0": (64,), "F16": ()}
"""Types by name, and the bytes of a block at which its float16 scales lie (ggml-common.h)."""


class LlamaCpp:
    """llama.cpp on matrices of `type`, in this process; its file is written to `folder` unless it is there."""

    def __init__(self, type: str, shape: str, prompt: int, new_tokens: int, threads: int, folder: str) -> None:
        try:
            import gguf
            import llama_cpp
        except ImportError as error:
            raise LutraError(f"llama.cpp: {error}: `make peers` installs what the benchmark compares with") from None
        self._api: Any = llama_cpp
        path = Path(folder, f"{shape}-{type}.gguf")
        if not path.exists():
            write_gguf(gguf, path, type, shape)
        self._weights = _matrix_bytes(gguf, path)
        self._bare = resident()
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        self._quiet = quiet  # C keeps a pointer to it
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not model:
            raise LutraError(f"llama.cpp cannot load a {type} file of shape {shape}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = prompt + new_tokens
        parameters.n_batch = parameters.n_ubatch = 512
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(model, parameters)
        vocabulary = SHAPES[shape].vocab_size
        self._vocabulary = vocabulary
        self._ids = [int(i) for i in np.random.default_rng(1).integers(0, vocabulary, prompt)]
        self._new_tokens = new_tokens

    def run(self) -> tuple[Timing, int]:
        """One generation of greedy tokens, and the most bytes that were resident in it above the bare process."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        with Peak() as peak:
            start = time.perf_counter()
            token = self._prompt()
            times = [time.perf_counter() - start]
            for _ in range(self._new_tokens - 1):
                start = time.perf_counter()
                token = self._step([token])
                times.append(time.perf_counter() - start)
        return Timing(len(self._ids), times[0], tuple(times[1:])), peak.bytes - self._bare

    def weight_bytes(self) -> int:
        """Bytes of weights that one decode step reads."""
        return self._weights

    def _prompt(self) -> int:
        for start in range(0, len(self._ids), 512):
            token = self._step(self._ids[start : start + 512])
        return token

    def _step(self, tokens: list[int]) -> int:
        """Feed `tokens`; the greedy choice after the last of them."""
        array = (self._api.llama_token * len(tokens))(*tokens)
        if self._api.llama_decode(self._context, self._api.llama_batch_get_one(array, len(tokens))) != 0:
            raise LutraError("llama.cpp: llama_decode failed")
        logits = np.ctypeslib.as_array(self._api.llama_get_logits_ith(self._context, -1), (self._vocabulary,))
        return int(logits.argmax())


def write_gguf(gguf: Any, path: Path, type: str, shape: str) -> None:
    """A Llama of `shape` with random matrices of `type` (a key of `SCALES_AT`)."""
    config, random = SHAPES[shape], np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType[type]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    writer = gguf.GGUFWriter(str(path) + ".part", "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(32768)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_file_type(int(gguf.LlamaFileType[f"MOSTLY_{type}"]))

    def matrix(name: str, rows: int, columns: int) -> None:
        if type == "F16":
            values = (random.standard_normal((rows, columns), dtype=np.float32) * 0.02).astype(np.float16)
            writer.add_tensor(name, values)
            return
        blocks = random.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
        for at in SCALES_AT[type]:
            blocks[:, at : at + 2] = np.frombuffer(np.float16(0.002).tobytes(), np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, columns // block * size), raw_dtype=kind)

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(config.hidden_size, np.float32))

    hidden, wide = config.hidden_size, config.intermediate_size
    kv = hidden // config.num_attention_heads * (config.num_key_value_heads or config.num_attention_heads)
    matrix("token_embd.weight", config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        prefix = f"blk.{layer}."
        ones(prefix + "attn_norm.weight")
        for name, rows in (("attn_q", hidden), ("attn_k", kv), ("attn_v", kv), ("attn_output", hidden)):
            matrix(f"{prefix}{name}.weight", rows, hidden)
        ones(prefix + "ffn_norm.weight")
        for name, rows, columns in (("ffn_gate", wide, hidden), ("ffn_up", wide, hidden), ("ffn_down", hidden, wide)):
            matrix(f"{prefix}{name}.weight", rows, columns)
    ones("output_norm.weight")
    matrix("output.weight", config.vocab_size, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    Path(str(path) + ".part").rename(path)


def _matrix_bytes(gguf: Any, path: Path) -> int:
    """Bytes of all tensors but the embedding, of which a step reads one row."""
    tensors = gguf.GGUFReader(str(path)).tensors
    return sum(int(tensor.n_bytes) for tensor in tensors if tensor.name != "token_embd.weight")
