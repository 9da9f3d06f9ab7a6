"""Where the repository and the trained checkpoint in it lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY_LLAMA = ROOT / "tests" / "assets" / "tiny-llama"
"""A Llama that was trained on code (`examples/train_tiny_llama.py`), with tokenizer and held-out text."""
