"""Random recipes under the guidance of what code they reach (atheris), one kind of them for some time.

    python -m lutra.tests.support.guided texts --seconds 60

Exits with 77 where atheris is not installed."""

import sys
from typing import Annotated

import typer


def main(
    kind: Annotated[str, typer.Argument(help="test of tests/recipes/test_random_recipes.py, without test_")],
    seconds: Annotated[int, typer.Option(min=1)] = 60,
) -> None:
    """A fault is printed with the input that showed it, and the exit code is not 0."""
    try:
        import atheris
    except ImportError:
        raise typer.Exit(77) from None
    with atheris.instrument_imports(include=["lutra.recipes", "lutra.passes.registry", "yaml"]):
        from lutra.tests.recipes import test_random_recipes as tests

    test = getattr(tests, f"test_{kind}")
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}"], test.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    typer.run(main)
