"""Checkpoints of a small llama as somebody could make them who means ill: hypothesis strategies.

A GGUF file is kept as its records until it is written, so that every field can be another one. Values are drawn from
those that break readers: 0, -1, powers of two and their neighbours, NaN, wrong types, lengths that lie.
"""

import json
import math
import os
import struct
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save

HIDDEN, FFN, HEADS, KEY_HEADS, VOCABULARY, GROUP = 64, 96, 4, 2, 40, 32
LINEARS = {
    "self_attn.q_proj": ("attn_q", HIDDEN, HIDDEN),
    "self_attn.k_proj": ("attn_k", HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": ("attn_v", HIDDEN // 2, HIDDEN),
    "self_attn.o_proj": ("attn_output", HIDDEN, HIDDEN),
    "mlp.gate_proj": ("ffn_gate", FFN, HIDDEN),
    "mlp.up_proj": ("ffn_up", FFN, HIDDEN),
    "mlp.down_proj": ("ffn_down", HIDDEN, FFN),
}
F32, Q4_0, Q8_0 = 0, 2, 8

EDGES = st.sampled_from(
    [0, 1, 2, 3, 5, 31, 32, 64, 1000, *(2**p + d for p in (8, 16, 31, 32, 48, 62, 63, 64) for d in (-1, 0, 1))]
)
NUMBERS: dict[int, str] = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


def number(kind: int, value: float) -> bytes:
    """`value`, cut to what the type of GGUF holds."""
    letter = NUMBERS[kind]
    if letter in "fd":
        return struct.pack(f"<{letter}", value)
    size = 8 * struct.calcsize(letter)
    value = 0 if math.isnan(value) or math.isinf(value) else int(value)
    return (value % 2**size).to_bytes(size // 8, "little")


def text(characters: bytes, length: int | None = None) -> bytes:
    return number(10, len(characters) if length is None else length) + characters


@dataclass
class Tensor:
    name: bytes
    dims: list[int]
    kind: int
    offset: int
    dimensions: int | None = None


@dataclass
class Gguf:
    """A GGUF file by its records; None: the number that is right."""

    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    key_count: int | None = None
    keys: list[tuple[bytes, int, bytes]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    data: bytes = b""

    def written(self) -> bytes:
        counts = (self.tensor_count, len(self.tensors)), (self.key_count, len(self.keys))
        parts = [self.magic, number(4, self.version)]
        parts += [number(10, right if given is None else given) for given, right in counts]
        for key, kind, value in self.keys:
            parts += [text(key), number(4, kind), value]
        for t in self.tensors:
            parts += [text(t.name), number(4, len(t.dims) if t.dimensions is None else t.dimensions)]
            parts += [number(10, size) for size in t.dims]
            parts += [number(4, t.kind), number(10, t.offset)]
        header = b"".join(parts)
        return header + bytes(-len(header) % 32) + self.data


def sound_gguf() -> Gguf:
    """A file that is read."""
    file = Gguf()
    counts = {
        "context_length": 64,
        "embedding_length": HIDDEN,
        "block_count": 1,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KEY_HEADS,
        "rope.dimension_count": HIDDEN // HEADS,
        "vocab_size": VOCABULARY,
    }
    file.keys.append((b"general.architecture", 8, text(b"llama")))
    file.keys += [(f"llama.{key}".encode(), 4, number(4, value)) for key, value in counts.items()]
    file.keys.append((b"llama.attention.layer_norm_rms_epsilon", 6, number(6, 1e-6)))
    file.keys.append((b"llama.rope.freq_base", 6, number(6, 10000.0)))
    file.keys.append((b"tokenizer.ggml.bos_token_id", 4, number(4, 1)))
    tokens = b"".join(text(str(i).encode()) for i in range(VOCABULARY))
    file.keys.append((b"tokenizer.ggml.tokens", 9, number(4, 8) + number(10, VOCABULARY) + tokens))
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (VOCABULARY, HIDDEN),
        "output_norm": (HIDDEN,),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,),
        **{f"blk.0.{short}": (n, k) for short, n, k in LINEARS.values()},
    }
    generator = np.random.default_rng(0)
    for i, (name, shape) in enumerate(shapes.items()):
        kind = F32 if len(shape) == 1 or name == "token_embd" else (Q4_0, Q8_0)[i % 2]
        size = math.prod(shape)
        if kind == F32:
            stored = generator.normal(size=size).astype(np.float32).tobytes()
        else:
            blocks = generator.integers(0, 256, (size // 32, 18 if kind == Q4_0 else 34), np.uint8)
            blocks[:, :2] = np.array([0.01], np.float16).view(np.uint8)
            stored = blocks.tobytes()
        file.tensors.append(Tensor(f"{name}.weight".encode(), list(shape[::-1]), kind, len(file.data)))
        file.data += stored + bytes(-len(stored) % 32)
    return file


FLOATS = st.sampled_from([0.0, -1.0, 1e-30, 1e30, math.inf, -math.inf, math.nan])


@st.composite
def values(draw: st.DrawFn) -> tuple[int, bytes]:
    """A type of GGUF and something that is, or claims to be, a value of it."""
    kind = draw(st.sampled_from([*NUMBERS, 8, 9, 13, 2**31]))
    if kind in NUMBERS:
        return kind, number(kind, draw(FLOATS if NUMBERS[kind] in "fd" else EDGES))
    if kind == 8:
        characters = draw(st.sampled_from([b"", b"llama", b"linear", b"\xff\xfe", b"x" * 300]))
        return kind, text(characters, draw(st.none() | EDGES))
    if kind == 9:
        inner = draw(st.sampled_from([*NUMBERS, 8, 9, 13]))
        some = draw(st.binary(max_size=40))
        depth = draw(st.sampled_from([0, 1, 20_000]))
        nested = (number(4, 9) + number(10, 1)) * depth
        return kind, nested + number(4, inner) + number(10, draw(EDGES | st.just(len(some)))) + some
    return kind, draw(st.binary(max_size=16))


def _count(draw: st.DrawFn, file: Gguf) -> None:
    name = draw(st.sampled_from(["version", "tensor_count", "key_count"]))
    setattr(file, name, draw(EDGES))


def _key(draw: st.DrawFn, file: Gguf) -> None:
    place = draw(st.integers(0, len(file.keys) - 1))
    key, kind, value = file.keys[place]
    what = draw(st.sampled_from(["value", "same type", "remove", "twice", "name", "alignment", "new"]))
    if what == "value":
        file.keys[place] = (key, *draw(values()))
    elif what == "same type" and kind in NUMBERS:
        file.keys[place] = key, kind, number(kind, draw(FLOATS if NUMBERS[kind] in "fd" else EDGES))
    elif what == "remove" and len(file.keys) > 1:
        del file.keys[place]
    elif what == "twice":
        file.keys.append((key, kind, value))
    elif what == "name":
        file.keys[place] = draw(st.binary(max_size=20)), kind, value
    else:
        names = [b"llama.expert_count", b"split.count", b"llama.attention.key_length", b"llama.rope.scaling.type"]
        name = b"general.alignment" if what == "alignment" else draw(st.sampled_from(names))
        type_, given = draw(values() | EDGES.map(lambda n: (4, number(4, n))))
        file.keys.append((name, type_, given))


def _tensor(draw: st.DrawFn, file: Gguf) -> None:
    place = draw(st.integers(0, len(file.tensors) - 1))
    tensor = file.tensors[place]
    changes = ["dims", "dimensions", "kind", "offset", "name", "remove", "twice", "exchange", "rope"]
    what = draw(st.sampled_from(changes))
    if what == "dims":
        tensor.dims = draw(st.lists(EDGES | st.sampled_from(tensor.dims), min_size=1, max_size=5))
    elif what == "dimensions":
        tensor.dimensions = draw(EDGES)
    elif what == "kind":
        tensor.kind = draw(st.integers(0, 45) | EDGES)
    elif what == "offset":
        tensor.offset = draw(EDGES | st.integers(0, len(file.data)))
    elif what == "name":
        others = [other.name for other in file.tensors]
        odd = [b"blk.1.attn_q.weight", b"blk.99999999999.attn_q.weight", b"blk.0.attn_q.bias", b"output.weight"]
        tensor.name = draw(st.sampled_from([*others, *odd]) | st.binary(max_size=70))
    elif what == "remove" and len(file.tensors) > 1:
        del file.tensors[place]
    elif what == "twice":
        file.tensors.append(deepcopy(tensor))
    elif what == "exchange":
        other = file.tensors[draw(st.integers(0, len(file.tensors) - 1))]
        tensor.offset, other.offset = other.offset, tensor.offset
    else:
        file.tensors.append(Tensor(b"rope_freqs.weight", [draw(EDGES)], F32, tensor.offset))


def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` cut, or with other bytes in it, most of them near its start."""
    what = draw(st.sampled_from(["cut", "bytes", "number", "more"]))
    place = draw(st.integers(0, min(len(content), 2000)) | st.integers(0, len(content)))
    if what == "cut":
        return content[:place]
    if what == "more":
        return content + draw(st.binary(max_size=64))
    new = draw(st.binary(min_size=1, max_size=8)) if what == "bytes" else number(10, draw(EDGES))
    return content[:place] + new + content[place + len(new) :]


@st.composite
def gguf_files(draw: st.DrawFn) -> bytes:
    """A GGUF file with one to three things wrong, or random bytes after the right magic."""
    if draw(st.integers(0, 19)) == 0:
        return b"GGUF" + draw(st.binary(max_size=200))
    file = sound_gguf()
    for _ in range(draw(st.integers(1, 3))):
        draw(st.sampled_from([_count, _key, _key, _key, _tensor, _tensor, _tensor]))(draw, file)
    content = file.written()
    return damaged_bytes(draw, content) if draw(st.integers(0, 3)) == 0 else content


@dataclass(repr=False)
class Folder:
    """The files of a folder by name: bytes, JSON, tensors by name, or `None` for a pipe."""

    files: dict[str, Any]

    def __repr__(self) -> str:
        shown = {
            name: {key: (str(value.dtype), list(value.shape)) for key, value in content.items()}
            if name.endswith(".safetensors") and isinstance(content, dict)
            else content
            for name, content in self.files.items()
        }
        return f"Folder({shown})"

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            if content is None:
                os.mkfifo(folder / name)
                continue
            (folder / name).write_bytes(written(name, content))
        return folder


def written(name: str, content: Any) -> bytes:
    """What is in the file `name`."""
    if isinstance(content, bytes):
        return content
    if name.endswith(".safetensors"):
        return save({key: tensor.contiguous().clone() for key, tensor in content.items()})
    return json.dumps(content).encode()


CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "head_dim": HIDDEN // HEADS,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "hidden_act": "silu",
    "dtype": "float32",
    "tie_word_embeddings": True,
}


def sound_folder(method: str | None) -> Folder:
    """A folder that is read: of GPTQ or AWQ weights, or (None) not quantised."""
    generator = torch.Generator().manual_seed(0)

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, generator=generator)

    tensors = {
        "model.embed_tokens.weight": torch.randn(VOCABULARY, HIDDEN, generator=generator),
        "model.norm.weight": torch.ones(HIDDEN),
        "model.layers.0.input_layernorm.weight": torch.ones(HIDDEN),
        "model.layers.0.post_attention_layernorm.weight": torch.ones(HIDDEN),
    }
    for layer, (_, n, k) in LINEARS.items():
        name = f"model.layers.0.{layer}"
        if method is None:
            tensors[f"{name}.weight"] = torch.randn(n, k, generator=generator)
            continue
        tensors[f"{name}.qweight"] = words(k // 8, n) if method == "gptq" else words(k, n // 8)
        tensors[f"{name}.qzeros"] = words(k // GROUP, n // 8)
        tensors[f"{name}.scales"] = torch.full((k // GROUP, n), 0.01, dtype=torch.float16)
        if method == "gptq":
            tensors[f"{name}.g_idx"] = torch.arange(k, dtype=torch.int32) // GROUP
    settings = {"quant_method": method, "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
    config = CONFIG if method is None else {**CONFIG, "quantization_config": settings}
    return Folder({"config.json": deepcopy(config), "model.safetensors": tensors})


ODD = st.sampled_from(
    [None, True, "", "x", "../x", -1, 0, 1, 3, 7, 10**7, 10**9, 2**31, 2**63, 2**64, 10**30, 0.5, math.nan, math.inf]
    + [[], {}, [1], {"a": 1}, {"": {"": []}}]
)
MORE_KEYS = ["auto_map", "attn_implementation", "num_labels", "layer_types", "attention_bias", "mlp_bias"]
MORE_KEYS += ["pad_token_id", "rope_theta", "rope_scaling", "torch_dtype", "sliding_window", "is_decoder", "to_dict"]
MORE_KEYS += ["__class__", "id2label", "transformers_weights", "use_cache", "pretraining_tp", "per_layer_config"]
SETTINGS = ["quant_method", "bits", "group_size", "sym", "desc_act", "checkpoint_format", "format", "version"]
MODEL_TYPES = ["gpt2", "qwen2", "mixtral", "gemma2", "bert", "t5", "mamba", "bloom", "clip", "nothing", "gemma3"]


def _config(draw: st.DrawFn, folder: Folder) -> None:
    config = folder.files["config.json"]
    what = draw(st.sampled_from(["key", "new", "remove", "settings", "rope", "type"]))
    if what == "settings" and isinstance(config.get("quantization_config"), dict):
        config["quantization_config"][draw(st.sampled_from(SETTINGS))] = draw(ODD)
    elif what == "remove":
        config.pop(draw(st.sampled_from(sorted(config))))
    elif what == "rope":
        rope_types = ["linear", "dynamic", "yarn", "longrope", "llama3", "none"]
        config["rope_parameters"] = {"rope_type": draw(st.sampled_from(rope_types)), "factor": draw(ODD)}
    elif what == "type":
        config["model_type"] = draw(st.sampled_from(MODEL_TYPES))
    else:
        config[draw(st.sampled_from(MORE_KEYS if what == "new" else sorted(config)))] = draw(ODD)


def _other(tensor: torch.Tensor, draw: st.DrawFn) -> torch.Tensor:
    if not tensor.dim() or not tensor.numel():  # from an earlier change
        return tensor
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "turned": lambda t: t.t() if t.dim() == 2 else t,
        "flat": lambda t: t.flatten(),
        "deeper": lambda t: t[None],
        "half": lambda t: t[: len(t) // 2],
        "twice": lambda t: torch.cat([t, t]),
        "thinner": lambda t: t[..., : t.shape[-1] // 2],
        "empty": lambda t: t[:0],
        "one": lambda t: t.flatten()[0],
        "number": lambda t: t.to(draw(st.sampled_from([torch.int32, torch.int64, torch.uint8, torch.bool]))),
        "floating": lambda t: t.to(draw(st.sampled_from([torch.float64, torch.bfloat16, torch.float8_e4m3fn]))),
        "lowest": lambda t: torch.full_like(t, -1),
        "highest": lambda t: torch.full_like(t, torch.nan if t.is_floating_point() else 2**31 - 1),
    }
    return changes[draw(st.sampled_from(sorted(changes)))](tensor)


def _tensors(draw: st.DrawFn, folder: Folder) -> None:
    tensors = folder.files["model.safetensors"]
    if not tensors:
        return
    name = draw(st.sampled_from(sorted(tensors)))
    what = draw(st.sampled_from(["change", "change", "remove", "rename", "copy"]))
    if what == "change":
        tensors[name] = _other(tensors[name], draw)
    elif what == "copy":
        tensors[draw(st.sampled_from([f"{name}.qweight", "lm_head.qweight", "model.norm.qweight"]))] = tensors[name]
    else:
        tensor = tensors.pop(name)
        if what == "rename":
            others = [*sorted(tensors), "", "a\nb", "x" * 300, "model.embed_tokens.qweight", f"{name}.qweight"]
            tensors[draw(st.sampled_from(others))] = tensor


def _index(draw: st.DrawFn, folder: Folder) -> None:
    tensors = folder.files.pop("model.safetensors")
    folder.files["part.safetensors"] = tensors
    names = sorted(tensors) or ["x"]
    places: dict[str, Any] = dict.fromkeys(names, "part.safetensors")
    odd = ["../part.safetensors", "/etc/passwd", "", ".", "..", "a\0.safetensors", "gone.safetensors", "config.json"]
    place = draw(st.sampled_from(odd) | ODD)
    if draw(st.booleans()):
        places[draw(st.sampled_from(names))] = place
    folder.files["model.safetensors.index.json"] = {"weight_map": draw(ODD) if draw(st.booleans()) else places}


@st.composite
def folders(draw: st.DrawFn) -> Folder:
    """A folder with one to three things wrong: in its configuration, its tensors, its index or any of its bytes."""
    folder = sound_folder(draw(st.sampled_from(["gptq", "awq", None])))
    for _ in range(draw(st.integers(1, 3))):
        draw(st.sampled_from([_config, _config, _tensors, _tensors]))(draw, folder)
    if draw(st.integers(0, 4)) == 0:
        _index(draw, folder)
    if draw(st.integers(0, 4)) == 0:
        name = draw(st.sampled_from(sorted(folder.files)))
        content = written(name, folder.files[name])
        odd: list[bytes | None] = [None, b"", b"[]", b"[" * 10_000, b'{"a":' * 10_000, b"1" * 5000, b"\xff", b"null"]
        folder.files[name] = draw(st.sampled_from(odd)) if draw(st.booleans()) else damaged_bytes(draw, content)
    return folder
