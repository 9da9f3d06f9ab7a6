"""One thread pool for torch and for compiled kernels: parallel loops of a loaded library run on torch's OpenMP.

A library that TVM exported calls its parallel loops through a pointer of its own, `__TVMBackendParallelLaunch`, which
TVM sets to its own pool when it loads the library. Here the pointer is set to a few lines of C over OpenMP instead,
built once with the system's compiler. Without a compiler TVM's pool stays in use: slower beside torch, never wrong.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch  # noqa: F401  (loads the OpenMP library that the launcher then shares)
import tvm
from tvm import tirx
from tvm.support.cc import get_cc

from ...cache.executables import ExecutableCache, Key

logger = logging.getLogger("lutra")
_POINTER = "__TVMBackendParallelLaunch"


class OpenMp:
    """Parallel loops of what is loaded run on torch's pool."""

    def export(self, library: Any, path: Path) -> None:
        """Link `library`, which TVM compiled, as `path`; what is made on the way stays beside it."""
        library.export_library(str(path), workspace_dir=str(path.parent))

    def load(self, path: Path, cache: ExecutableCache) -> Any:
        """The TVM module at `path`; the launcher is kept in `cache`."""
        module = tvm.runtime.load_module(str(path))
        use_torch_threads(path, cache)
        return module


def use_torch_threads(library: Path, launcher_cache: ExecutableCache) -> bool:
    """Point the parallel loops of a loaded `library` at torch's pool; False when no launcher could be built."""
    launcher = _launcher(launcher_cache.folder)
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
    store = ExecutableCache(None)
    key = Key({"kernel": function.script(), "target": str(target)})
    library = tvm.compile(function, target=target)
    launcher = OpenMp()
    entry = store.add(key, {}, partial(launcher.export, library), partial(launcher.load, cache=store))
    return entry.library["main"]


@cache
def _launcher(folder: Path | None) -> ctypes.CDLL | None:
    """The launcher, from the cache in `folder` or built now."""
    source = resources.files(__package__ or __name__).joinpath("launcher.c").read_bytes()
    store = ExecutableCache(folder)
    key = Key({"launcher": hashlib.sha256(source).hexdigest(), "machine": platform.machine()})

    def load(path: Path) -> ctypes.CDLL:
        return ctypes.CDLL(str(path))

    try:
        entry, _ = store.find(key, load)
        entry = entry or store.add(key, {}, partial(_compile, source), load, "launcher.so")
        return entry.library
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", b"").decode(errors="replace").strip() or error
    logger.warning("kernels run on TVM's own threads beside torch's: the OpenMP launcher cannot be built: %s", detail)
    return None


def compilers() -> tuple[str | None, str | None]:
    """What links compiled code, by TVM's choice, and what builds the launcher; None where there is none."""
    return get_cc(), os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")


def _compile(source: bytes, target: Path) -> None:
    _, compiler = compilers()
    if compiler is None:
        raise OSError("no C compiler (gcc, cc or clang) is on the PATH")
    code = target.with_name("launcher.c")
    code.write_bytes(source)
    command = [compiler, "-O2", "-fopenmp", "-shared", "-fPIC", "-o", str(target), str(code)]
    # Its temporary files beside the others: TMPDIR may be full.
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "TMPDIR": str(target.parent)})
