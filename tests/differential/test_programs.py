"""Random programs give eager's answer.

LUTRA_SEED=7 takes other programs, LUTRA_PROGRAMS=1000 more of them. A failure is shrunk and printed as a script that
runs alone; a program that kills the process is the newest `lutra-program-*.py` in the folder of temporary files.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from lutra.tests.differential.programs import Program, programs
from lutra.tests.sweeps.compare import difference

PARTS = 8
SEED = int(os.environ.get("LUTRA_SEED", "0"))
PROGRAMS = int(os.environ.get("LUTRA_PROGRAMS", "200"))


def disagreement(program: Program, backend: str = "lutra") -> str | None:
    """What `backend` does otherwise than eager; None for nothing."""
    inputs, function = program.functions()
    torch._dynamo.reset()
    options: Any = {"options": {"cache": False}} if backend == "lutra" else {}
    compiled = torch.compile(function, backend=backend, dynamic=program.dynamic or None, **options)
    for number, grow in enumerate(program.calls):
        (arguments, memory), (same, other_memory) = inputs(grow), inputs(grow)
        with torch.no_grad():
            try:
                expected = function(*arguments)
            except (RuntimeError, IndexError, ValueError, TypeError):  # a size stands in a line as a number
                assert number, "eager ran it a moment ago"
                return None
            actual = compiled(*same)
        sizes = f"call {number + 1}, sizes grown by {grow}: " if number else ""
        if found := difference(expected, actual):
            return f"{sizes}{found}"
        if changed := difference(memory, other_memory):
            return f"{sizes}memory of the inputs: {changed}"
        for want, got in zip(expected, actual, strict=True):  # what comes next is of no consequence to what is here
            if isinstance(want, torch.Tensor) and want.is_contiguous():
                want.fill_(1)
                got.fill_(1)
        if changed := difference(memory, other_memory):
            return f"{sizes}memory of the inputs, after results were written to: {changed}"
    return None


def torch_itself_fails(program: Program) -> bool:
    """No backend can do what Dynamo or AOTAutograd refuse."""
    try:
        disagreement(program, "aot_eager")
    except Exception:
        return True
    return False


@pytest.mark.parametrize("part", range(PARTS))
def test_random_programs_agree_with_eager(part: int):
    last = Path(tempfile.gettempdir()) / f"lutra-program-{os.getpid()}.py"

    @seed(SEED * PARTS + part)
    @settings(
        max_examples=-(-PROGRAMS // PARTS),
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
    )
    @given(programs())
    def agrees(program: Program) -> None:
        last.write_text(program.script())
        try:
            found = disagreement(program)
        except Exception as error:
            if torch_itself_fails(program):
                return
            raise AssertionError(f"{type(error).__name__} where eager has an answer\n\n{program.script()}") from error
        assert found is None, f"{found}\n\n{program.script()}"

    agrees()
    last.unlink()
