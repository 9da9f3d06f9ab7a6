"""What a run wrote, without what others wrote into it."""

# Transformers imports torchao where it is installed, as it is for the tests. torchao then says which of its CUDA
# libraries do not load, and torch that torchao calls something deprecated.
TORCHAO = ("/site-packages/torchao/", "torch/utils/_pytree.py")


def own(stderr: str) -> str:
    """`stderr` without the lines that importing torchao writes."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not any(part in line for part in TORCHAO))
