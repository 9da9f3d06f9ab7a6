"""Whatever stands behind `lutra` runs, or is one line on stderr and exit code 2.

Every model in them is broken or not there."""

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest
import transformers  # noqa: F401  (its log keeps the stderr of its first import, which no test may close)
from hypothesis import given
from hypothesis import strategies as st
from lutra.cli.main import main
from lutra.recipes.loading import library
from lutra.tests.recipes.random_recipes import texts
from lutra.tests.support.fuzzing import random

CONFIGS = {
    "empty": "",
    "list": "[]",
    "deep": "[" * 100_000,
    "nothing": "{}",
    "strange": '{"model_type": "strange"}',
    "code": '{"model_type": "strange", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}',
    "method": '{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}',
    "text": '{"model_type": "llama", "hidden_size": "large", "vocab_size": -1}',
    "null": '{"model_type": null, "quantization_config": 3}',
    "negative": '{"model_type": "llama", "hidden_size": -64, "num_attention_heads": 0}',
    "weightless": '{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "architectures": ["Llama"]}',
}
MODELS = [
    *CONFIGS,
    "pipe",
    "piped",
    "note",
    "a.gguf",
    "none.gguf",
    "./none",
    "/none",
    "org/none",
    "a/b/c",
    "",
    ".",
    "~/x",
]
NUMBERS = ["-1", "0", "3", "10**30", "9" * 5000, "1e3", "nan", "0x10", " 3", "1048577", "2147483648", "true"]
NAMES = [
    *library(),
    "w2lut",
    "",
    "none.yaml",
    "pipe",
    "pipe.yaml",
    "/dev/zero",
    "{lutra: 1",
    "{}",
    "{lutra: 1, name: x}",
]
VARIABLES = [
    "bits=2",
    "bits=[",
    "bits",
    "=",
    "bits=true",
    "bitz=2",
    "bits=!!python/name:os.system",
    "bits=&a [*a]",
    "a=\ud800",
]
FOLDERS = ["new", "pipe", "note", "note/x", "/proc/none", "/dev/null", "", "x" * 300, "\udcff"]
ANYTHING = st.sampled_from(["-h", "--", "-", "--help=1", "a\0b", "\ud800", "\n", "$(id)", "-o", "--frob", "x" * 10_000])

OPTIONS: dict[str, st.SearchStrategy[str]] = {
    "--var": st.sampled_from(VARIABLES) | texts(),
    "--recipe": st.sampled_from(NAMES) | texts(),
    "--dtype": st.sampled_from(["auto", "float16", "float99", "Tensor", "", "__doc__", "load"]),
    **dict.fromkeys(["--prompt", "--new-tokens", "--batch", "--context"], st.sampled_from(NUMBERS)),
    **dict.fromkeys(["--output", "-o", "--trace", "--cache-dir"], st.sampled_from(FOLDERS)),
}
TAKES = {
    "recipes": ["--var"],
    "passes": [],
    "ops": [],
    "targets": [],
    "profile": ["--recipe", "--var", "--dtype", "--prompt", "--new-tokens", "--trace"],
    "explain": ["--recipe", "--var", "--dtype", "--batch", "--context"],
    "pack": ["--recipe", "--var", "--dtype", "--output", "-o"],
    "verify": ["--dtype"],
    "cache info": ["--cache-dir"],
    "cache clear": ["--cache-dir"],
    "cache": [],
    "pakc": [],
    "": [],
}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with arguments and options that it takes, most of them wrong; now and then with others too."""
    command = draw(st.sampled_from(list(TAKES)))
    words = command.split()
    if command in ("profile", "explain", "pack"):
        words.append(draw(st.sampled_from(MODELS)))
    elif command == "recipes":
        words += draw(st.lists(st.sampled_from(NAMES) | texts(), max_size=1))
    elif command == "ops":
        words += draw(st.lists(st.sampled_from(["linear", "lutra.rope", "linaer", "lutra.", ""]) | texts(), max_size=1))
    if command == "pack":
        words += ["-o", draw(st.sampled_from(FOLDERS))]
    for name in draw(st.lists(st.sampled_from(TAKES[command] or list(OPTIONS)), max_size=2)):
        words += [name, draw(OPTIONS[name])]
    for stray in draw(st.lists(ANYTHING | st.text(max_size=5), max_size=1)) if draw(st.integers(0, 4)) == 0 else ():
        words.insert(draw(st.integers(0, len(words))), stray)
    return words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(config)
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.yaml")
    (folder / "piped").mkdir()
    (folder / "piped" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    os.mkfifo(folder / "piped" / "generation_config.json")
    (folder / "note").write_text("not a model")
    (folder / "a.gguf").write_bytes(b"GGUF\xff\xff\xff\xff")
    return folder


def run(words: list[str]) -> tuple[int, str]:
    """Exit code and what is told on stderr."""
    told = io.StringIO()
    with (
        patch("sys.argv", ["lutra", *words]),
        redirect_stdout(io.StringIO()),
        redirect_stderr(told),
        pytest.raises(SystemExit) as exit_,
    ):
        main()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, told.getvalue()


@pytest.mark.fuzz
def test_command_lines(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LUTRA_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    @random(150, seconds=None)
    @given(command_lines())
    def runs_or_says_why(words: list[str]) -> None:
        code, told = run(words)
        assert code in (0, 2)
        if code == 2:
            assert told.startswith("Usage:") or (told.startswith("lutra: ") and told.count("\n") == 1)
            assert len(told) < 6000

    runs_or_says_why()
