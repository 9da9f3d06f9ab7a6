"""How random tests are run: a fixed budget in the suite, any other by `make fuzz`.

LUTRA_FUZZ=10000 tries so many inputs with each test instead of its own number, LUTRA_SEED=7 takes others."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings

_CHECKS: Any = list(HealthCheck)
SEED = int(os.environ.get("LUTRA_SEED", "0"))


def inputs(own: int) -> int:
    """How many are tried; `own`: in the suite."""
    return int(os.environ.get("LUTRA_FUZZ") or own)


def random(own: int, seconds: float | None = 60) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator over hypothesis' `given`: `own` inputs in the suite, the same ones each time.

    seconds: the most that one input may take; what is not bounded takes hours."""

    def decorate(test: Any) -> Any:
        bounded = settings(
            max_examples=inputs(own),
            deadline=None if seconds is None else timedelta(seconds=seconds),
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=_CHECKS,
        )
        return seed(SEED)(bounded(test))

    return decorate
