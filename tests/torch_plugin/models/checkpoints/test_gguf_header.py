"""No number in the header of a GGUF file is believed: each fault is named by its field."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lutra.ir.errors import CheckpointError
from lutra.tests.torch_plugin.models.checkpoints.damage import F32, Q4_0, Gguf, Tensor, number, sound_gguf, text
from lutra.torch_plugin.models.checkpoints.gguf_file import read_gguf
from lutra.torch_plugin.models.checkpoints.gguf_header import GgufArray, read_header
from lutra.torch_plugin.models.given_model import load_checkpoint

NAMES = [tensor.name for tensor in sound_gguf().tensors]
QUERY = NAMES.index(b"blk.0.attn_q.weight")


def key(name: bytes, kind: int, value: bytes) -> Callable[[Gguf], Any]:
    """Give the file this key instead of one of its name."""

    def change(file: Gguf) -> None:
        file.keys = [other for other in file.keys if other[0] != name] + [(name, kind, value)]

    return change


def without(name: bytes) -> Callable[[Gguf], Any]:
    def change(file: Gguf) -> None:
        file.keys = [other for other in file.keys if other[0] != name]
        file.tensors = [other for other in file.tensors if other.name != name]

    return change


def tensor(**fields: Any) -> Callable[[Gguf], Any]:
    """Change the fields of attn_q."""
    return lambda file: [setattr(file.tensors[QUERY], name, value) for name, value in fields.items()]


def count(name: str, value: int) -> Callable[[Gguf], Any]:
    return lambda file: setattr(file, name, value)


def array(kind: int, length: int, content: bytes = b"") -> bytes:
    return number(4, kind) + number(10, length) + content


def frequencies(dims: list[int]) -> Callable[[Gguf], Any]:
    def change(file: Gguf) -> None:
        file.tensors.append(Tensor(b"rope_freqs.weight", dims, F32, len(file.data)))
        file.data += bytes(32)

    return change


TOKENS, HEADS = b"tokenizer.ggml.tokens", b"llama.attention.head_count"
FAULTS: dict[str, tuple[Callable[[Gguf], Any], str]] = {
    "magic": (lambda file: setattr(file, "magic", b"GGML"), "it begins with b'GGML', not with b'GGUF'"),
    "version": (count("version", 1), "version 1 of GGUF: 2 and 3 can be read"),
    "no version": (count("version", 0), "version 0 of GGUF"),
    "byte order": (count("version", 3 << 24), "numbers in the other order"),
    "tensors": (count("tensor_count", 2**63), "says 9223372036854775808 tensors: at most"),
    "keys": (count("key_count", 2**31), "says 2147483648 keys: at most"),
    "long string": (key(b"a", 8, text(b"", 2**62)), "'a' takes 4611686018427387904 bytes from"),
    "long array": (key(b"a", 9, array(4, 2**62)), "'a' takes 18446744073709551616 bytes from"),
    "many strings": (key(b"a", 9, array(8, 2**40)), "says 1099511627776 strings in 'a': at most"),
    "nested": (key(b"a", 9, (number(4, 9) + number(10, 1)) * 20_000), "'a' is an array of arrays"),
    "type": (key(b"a", 13, b""), "'a' is of type 13, which GGUF does not have"),
    "type in an array": (key(b"a", 9, array(99, 1)), "'a' is of type 99, which GGUF does not have"),
    "long key": (key(b"a" * 70_000, 4, number(4, 1)), "key .* has 70000 bytes: 65535 would be the most"),
    "no UTF-8": (key(b"\xff", 4, number(4, 1)), r"key .* is not in UTF-8: b'\\xff'"),
    "key twice": (lambda file: file.keys.append(file.keys[3]), "the key 'llama.block_count' is there twice"),
    "alignment of 0": (key(b"general.alignment", 4, number(4, 0)), "general.alignment is 0: a power of two"),
    "alignment of 24": (key(b"general.alignment", 4, number(4, 24)), "general.alignment is 24: a power of two"),
    "alignment as text": (key(b"general.alignment", 8, text(b"x")), "general.alignment is 'x': a power of two"),
    "huge alignment": (key(b"general.alignment", 4, number(4, 2**31)), "has the offset .* a multiple of 2147483648"),
    "no dimension": (tensor(dimensions=0), "tensor 'blk.0.attn_q.weight' has 0 dimensions: 1 to 4"),
    "many dimensions": (tensor(dimensions=2**31), "tensor 'blk.0.attn_q.weight' has 2147483648 dimensions: 1 to 4"),
    "a dimension of 0": (tensor(dims=[64, 0]), r"'blk.0.attn_q.weight' has the shape .*: no dimension may be 0"),
    "overflow": (
        tensor(dims=[2**32, 2**32]),
        r"'blk.0.attn_q.weight' of shape .4294967296, 4294967296. has",
    ),
    "part of a block": (
        tensor(dims=[48, 64]),
        "'blk.0.attn_q.weight' has rows of 48: a multiple of 32, the block of",
    ),
    "kind": (tensor(kind=4), "'blk.0.attn_q.weight' is of type 4, which gguf does not know"),
    "offset": (tensor(offset=2**40), "'blk.0.attn_q.weight' of shape .* has the bytes 1099511627776 to"),
    "odd offset": (tensor(offset=33), "'blk.0.attn_q.weight' has the offset 33: a multiple of 32 would be right"),
    "overlap": (tensor(offset=0), "tensors 'token_embd.weight' and 'blk.0.attn_q.weight' lie over each other"),
    "tensor twice": (
        lambda file: file.tensors.append(file.tensors[2]),
        "'blk.0.attn_norm.weight' is there twice",
    ),
    "long name": (tensor(name=b"x" * 65), "the name of tensor .* has 65 bytes: 64 would be the most"),
    "not whole": (
        lambda file: setattr(file, "data", file.data[:-64]),
        "of the data, of which the file has",
    ),
    "no embeddings": (without(b"token_embd.weight"), "has no token_embd.weight"),
    "no head count": (without(HEADS), "its metadata has no llama.attention.head_count"),
    "head count of 0": (
        key(HEADS, 4, number(4, 0)),
        "its llama.attention.head_count is 0: .* greater than or equal",
    ),
    "negative head count": (key(HEADS, 5, number(5, -4)), "its llama.attention.head_count is -4: "),
    "head count as text": (key(HEADS, 8, text(b"4")), "its llama.attention.head_count is '4': .* valid integer"),
    "head counts": (key(HEADS, 9, array(4, 1, number(4, 4))), "head_count is an array of 1 uint32: .* valid integer"),
    "truth": (key(HEADS, 7, b"\1"), "its llama.attention.head_count is True: .* valid integer"),
    "odd heads": (
        key(HEADS, 4, number(4, 3)),
        "its llama.attention.head_count is 3: no multiple of .*_kv, 2",
    ),
    "layers": (key(b"llama.block_count", 4, number(4, 2**32 - 1)), "its llama.block_count is 4294967295: .* less than"),
    "infinite base": (key(b"llama.rope.freq_base", 6, number(6, float("inf"))), "freq_base is inf: .* finite number"),
    "no base": (key(b"llama.rope.freq_base", 6, number(6, float("nan"))), "its llama.rope.freq_base is nan: "),
    "epsilon": (key(b"llama.attention.layer_norm_rms_epsilon", 6, number(6, -1)), "layer_norm_rms_epsilon is -1.0: "),
    "vocabulary": (key(b"llama.vocab_size", 4, number(4, 41)), "its llama.vocab_size says 41 tokens, .* has 40 rows"),
    "tokens": (key(TOKENS, 9, array(8, 1, text(b"a"))), "its tokenizer.ggml.tokens says 1 tokens, .* has 40 rows"),
    "token": (key(b"tokenizer.ggml.eos_token_id", 4, number(4, 40)), "eos_token_id is 40, of 40 tokens: .* 0 to 39"),
    "a quantised norm": (
        lambda file: setattr(file.tensors[1], "kind", Q4_0),
        r"output_norm.weight is of type Q4_0 and of shape \[64\]: only matrices can be quantised",
    ),
    "divided heads": (tensor(dims=[64, 60]), "blk.0.attn_q.weight has 60 rows, which are no whole pairs of 4 heads"),
    "frequencies": (frequencies([3]), r"its rope_freqs.weight is \[3\]: \[8\] would be right"),
    "frequencies of 0": (frequencies([8]), "its rope_freqs.weight has values that are not positive and finite"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(tmp_path: Path, fault: str):
    change, message = FAULTS[fault]
    file = sound_gguf()
    change(file)
    path = tmp_path / "model.gguf"
    path.write_bytes(file.written())
    with pytest.raises(CheckpointError, match=message) as error:
        read_gguf(path)
    assert str(error.value).startswith(str(path)) and len(str(error.value)) < 500


def test_more_layers_than_tensors(tmp_path: Path):
    file = sound_gguf()
    key(b"llama.block_count", 4, number(4, 2**31 - 1))(file)
    (tmp_path / "model.gguf").write_bytes(file.written())
    with pytest.raises(CheckpointError, match=r"configuration .of 2147483647 layers. needs more than 10.. parameters"):
        load_checkpoint(tmp_path / "model.gguf", {})


def test_what_a_header_says(tmp_path: Path):
    path = tmp_path / "model.gguf"
    path.write_bytes(sound_gguf().written())
    file = read_header(path)
    assert file.metadata["llama.block_count"] == 1 and file.metadata["general.architecture"] == "llama"
    assert file.metadata["tokenizer.ggml.tokens"] == GgufArray("string", 40)
    embeddings = file.tensors["token_embd.weight"]
    assert (embeddings.kind, embeddings.shape, embeddings.data.shape) == ("F32", (40, 64), (40, 256))


@pytest.mark.parametrize("size", [0, 3, 4, 8, 23])
def test_a_file_that_ends_in_its_first_bytes(tmp_path: Path, size: int):
    path = tmp_path / "model.gguf"
    path.write_bytes(sound_gguf().written()[:size])
    with pytest.raises(CheckpointError, match=r"model.gguf: (the file is empty|it is no GGUF|.* beyond the end)"):
        read_gguf(path)
