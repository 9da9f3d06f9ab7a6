"""One thread pool for torch and for compiled kernels: parallel loops of a loaded library run on torch's OpenMP.

A library that TVM exported calls its parallel loops through a pointer of its own, `__TVMBackendParallelLaunch`, which
TVM sets to its
own pool when it loads the library. Here the pointer is set to a few lines of C over OpenMP instead, built once with
the system's compiler. Without a compiler TVM's pool stays in use: slower beside torch, never wrong.
"""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch  # noqa: F401  (loads the OpenMP library that the launcher then shares)
import tvm
from tvm import tirx

logger = logging.getLogger("lutra")
_POINTER = "__TVMBackendParallelLaunch"


def use_torch_threads(library: Path) -> bool:
    """Point the parallel loops of a loaded `library` at torch's pool; False when no launcher could be built."""
    launcher = _launcher(library.parent.parent)  # beside the entries of a cache
    if launcher is None:
        return False
    try:
        pointer = ctypes.c_void_p.in_dll(ctypes.CDLL(str(library)), _POINTER)
    except ValueError:
        return True  # nothing in it is parallel
    pointer.value = ctypes.cast(launcher.lutra_parallel_launch, ctypes.c_void_p).value
    return True


def compiled(function: tirx.PrimFunc, target: tvm.target.Target) -> Any:
    """`function`, called with torch's threads, of a library that lasts as long as the process: for measurements."""
    library = Path(tempfile.mkdtemp(dir=_scratch().name), "kernel.so")
    tvm.compile(function, target=target).export_library(str(library))
    module = tvm.runtime.load_module(str(library))
    use_torch_threads(library)
    return module["main"]


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """One folder for all libraries of `compiled`, which then share one launcher."""
    return tempfile.TemporaryDirectory(prefix="lutra-")


@cache
def _launcher(folder: Path) -> ctypes.CDLL | None:
    """The launcher in `folder`, built if need be; in a temporary folder where that one takes no more files."""
    source = resources.files(__package__ or __name__).joinpath("parallel.c").read_bytes()
    name = f"parallel-{hashlib.sha256(source).hexdigest()[:16]}.so"
    detail: Exception | bytes | str = ""
    for place in (lambda: folder, lambda: Path(tempfile.mkdtemp(prefix="lutra-"))):
        try:
            target = place() / name
            if not target.exists():
                _compile(source, target)
            return ctypes.CDLL(str(target))
        except (OSError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", b"") or error
    logger.warning("kernels run on TVM's own threads beside torch's: the OpenMP launcher cannot be built: %s", detail)
    return None


def _compile(source: bytes, target: Path) -> None:
    """Compile into a name of our own, then rename: another process may be doing the same."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        raise OSError("no C compiler (gcc, cc or clang) is on the PATH")
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        code, built = Path(scratch, "parallel.c"), Path(scratch, "parallel.so")
        code.write_bytes(source)
        command = [compiler, "-O2", "-fopenmp", "-shared", "-fPIC", "-o", str(built), str(code)]
        subprocess.run(command, check=True, capture_output=True)
        os.replace(built, target)
