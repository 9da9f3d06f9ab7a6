"""The CPU of this machine."""

from functools import cache
from pathlib import Path

import tvm
from tvm.target.codegen import llvm_cpu_has_features

_CPU_INFO = Path("/proc/cpuinfo")
_ARM_NAMES = {"asimd": "neon", "asimddp": "dotprod", "asimdhp": "fullfp16"}


@cache
def host() -> tvm.target.Target:
    """The TVM target of this machine's CPU."""
    return tvm.target.Target.from_device("cpu")


def has_feature(name: str) -> bool:
    """True when this machine executes the instructions of a feature, given by its LLVM name.

    Linux tells what a processor has. Its model, all that LLVM goes by, is not enough: a virtual machine may show an
    older model than its features, or fewer features than its model."""
    told = _told_by_linux()
    return name in told if told else bool(llvm_cpu_has_features([name], host()))


@cache
def _told_by_linux() -> frozenset[str]:
    """LLVM's names of all features; empty where there is no such list."""
    lines = _CPU_INFO.read_text().splitlines() if _CPU_INFO.exists() else []
    listed = next((line.split(":")[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    names = (name.replace("avx512_", "avx512").replace("amx_", "amx-") for name in listed)
    return frozenset(_ARM_NAMES.get(name, name) for name in names)
