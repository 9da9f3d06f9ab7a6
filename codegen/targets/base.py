"""What a target is: a device, how code for it is made and started, and what it has for each kind of problem."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tvm

from ..cache.executables import ExecutableCache
from ..device import Device
from ..runtime.workspace import Workspace
from ..select import Implementation

Pipeline = Callable[[tvm.IRModule], tuple[tvm.IRModule, Workspace]]
"""Relax to calls of scheduled functions over planned memory, and the memory that `main` takes as its last
parameters."""


class Launcher(Protocol):
    """How compiled code is linked and loaded, and who runs its parallel loops."""

    def export(self, library: Any, path: Path) -> None:
        """Link `library`, which TVM compiled, as `path`; what is made on the way stays beside it."""
        ...

    def load(self, path: Path, cache: ExecutableCache) -> Any:
        """The TVM module at `path`; what it takes to run it is kept in `cache`."""
        ...


@dataclass(frozen=True, eq=False)
class Target(ABC):
    """A kind of machine that code is made for. implementations: by operation, in the order in which they are tried."""

    name: str
    device: Device
    pipeline: Pipeline
    launcher: Launcher
    implementations: Mapping[str, tuple[Implementation, ...]]

    @property
    @abstractmethod
    def features(self) -> tuple[str, ...]:
        """What a machine must have, by LLVM's names."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Equal where equal graphs make equal code."""

    @abstractmethod
    def available(self) -> bool:
        """True when this machine executes the code."""

    @abstractmethod
    def tvm_target(self, cross: bool = False) -> tvm.target.Target:
        """As TVM is told: of this machine, or with `cross` of one that is known to have what it takes."""

    @abstractmethod
    def check(self) -> None:
        """Raise `LoweringError` where code cannot be generated on this machine."""
