"""All targets by name."""

from ...ir.errors import TargetError, did_you_mean
from .base import Target
from .cpu.isas import ISAS
from .cpu.target import CpuTarget

TARGETS: dict[str, Target] = {name: CpuTarget.of(isa) for name, isa in ISAS.items()}
"""All targets by name, the most capable first."""


def get_target(name: str = "auto", cross: bool = False) -> Target:
    """The target `name`; "auto" is the most capable one that this machine executes.

    Raises `TargetError` for an unknown name and, unless `cross` (code is only compiled, not run), for an ISA that this
    machine lacks."""
    if name == "auto":
        return next(target for target in TARGETS.values() if target.available())
    if name not in TARGETS:
        raise TargetError(f"target {name!r} is unknown: {did_you_mean(name, ['auto', *TARGETS])}")
    target = TARGETS[name]
    if not cross and not target.available():
        present = ", ".join(t.name for t in TARGETS.values() if t.available())
        raise TargetError(f"target {name!r} is not present on this machine: it has {present}")
    return target
