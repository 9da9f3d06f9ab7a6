"""Train the small Llama that all quality figures use: 7M parameters on the source of Python's standard library.

    python examples/train_tiny_llama.py --minutes 40 --output tests/assets/tiny-llama

The corpus is found through `sysconfig`, nothing is downloaded. Files are split by a hash of their path: every 25th
file is held out. Time, not steps, drives the schedule, so that a run always ends with a fully annealed model.
"""

import hashlib
import json
import math
import sysconfig
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import ByteLevelBPETokenizer
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 4096
WINDOW = 512
HELD_OUT_ONE_IN = 25
END_OF_TEXT = "<|endoftext|>"


def corpus(root: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """`(training, held out)` as (relative path, text), split by file; no tests, vendored packages or data tables."""
    training, held_out = [], []
    skipped = {
        "site-packages",
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "turtledemo",
        "__pycache__",
        "encodings",
        "config",
    }
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if skipped & set(relative.parts) or path.stat().st_size > 200_000:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        digest = int(hashlib.sha256(str(relative).encode()).hexdigest(), 16)
        (held_out if digest % HELD_OUT_ONE_IN == 0 else training).append((str(relative), text))
    return training, held_out


def train_tokenizer(texts: list[str], output: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE with `VOCABULARY` entries, saved so that `AutoTokenizer.from_pretrained(output)` loads it."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=VOCABULARY, min_frequency=2, special_tokens=[END_OF_TEXT], show_progress=False
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(output)
    return tokenizer


def model_config() -> LlamaConfig:
    """About 7M parameters: hidden 256, 8 layers, 8 query and 4 key/value heads, FFN 768, tied embeddings."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


@torch.no_grad()
def held_out_perplexity(model: torch.nn.Module, tokens: torch.Tensor, windows: int | None = None) -> float:
    """exp(mean negative log-likelihood) over non-overlapping windows of `WINDOW` tokens."""
    total, count = 0.0, 0
    chunks = list(tokens[: len(tokens) // WINDOW * WINDOW].reshape(-1, WINDOW))[:windows]
    for chunk in chunks:
        logits = model(chunk[None]).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, chunk[1:], reduction="sum").item()
        count += WINDOW - 1
    return math.exp(total / count)


def train(model: torch.nn.Module, tokens: torch.Tensor, minutes: float, batch: int, length: int, peak: float) -> None:
    """AdamW under a time-driven schedule: 3 % warm-up, then a cosine to 2 % of the peak learning rate."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.95),
    )
    generator = torch.Generator().manual_seed(0)
    start, budget = time.monotonic(), minutes * 60
    with tqdm(total=round(budget), unit="s") as bar:
        while (elapsed := time.monotonic() - start) < budget:
            progress = elapsed / budget
            scale = (
                min(progress / 0.03, 1.0)
                if progress < 0.03
                else 0.02 + 0.49 * (1 + math.cos(math.pi * (progress - 0.03) / 0.97))
            )
            for group in optimizer.param_groups:
                group["lr"] = peak * max(scale, 0.01)
            starts = torch.randint(0, len(tokens) - length - 1, (batch,), generator=generator)
            x = torch.stack([tokens[s : s + length] for s in starts.tolist()])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(x, labels=x).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            bar.update(round(time.monotonic() - start) - bar.n)
            bar.set_postfix(loss=f"{loss.item():.3f}")


def complete(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, tokens: int = 64) -> str:
    """Greedy continuation of `prompt`."""
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return str(tokenizer.decode(out[0]))


def main(
    output: Annotated[Path, typer.Option(help="folder for checkpoint, tokenizer and held-out text")] = Path(
        "tests/assets/tiny-llama"
    ),
    minutes: Annotated[float, typer.Option(help="training time")] = 40.0,
    batch: int = 8,
    length: int = 256,
    learning_rate: float = 2e-3,
) -> None:
    """Train, save (bfloat16 safetensors), and print held-out perplexity and a sample completion."""
    torch.manual_seed(0)
    output.mkdir(parents=True, exist_ok=True)
    training, held_out = corpus(Path(sysconfig.get_path("stdlib")))
    tokenizer = train_tokenizer([text for _, text in training], output)
    tokens = torch.tensor([t for _, text in training for t in (*tokenizer(text)["input_ids"], 0)])
    held_text = END_OF_TEXT.join(text for _, text in held_out)
    (output / "heldout.txt").write_text(held_text, encoding="utf-8")
    held_tokens = torch.tensor(tokenizer(held_text)["input_ids"])
    model = LlamaForCausalLM(model_config())
    size = sum(p.numel() for p in model.parameters())
    print(
        f"{len(training)} files, {len(tokens):,} tokens; held out {len(held_out)} files, {len(held_tokens):,} tokens; "
        f"{size:,} parameters"
    )
    train(model, tokens, minutes, batch, length, learning_rate)
    model.bfloat16().eval()
    model.save_pretrained(output)
    perplexity = held_out_perplexity(model.float(), held_tokens)
    sample = complete(model, tokenizer, "def read_file(path):\n    ")
    facts = {
        "held_out_perplexity": round(perplexity, 4),
        "minutes": minutes,
        "parameters": size,
        "training_tokens": len(tokens),
    }
    (output / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"held-out perplexity {perplexity:.3f}\n--- sample ---\n{sample}")


if __name__ == "__main__":
    typer.run(main)
