"""What Lutra needs of a machine, looked at before anybody asks: `lutra doctor`.

Every finding says what there is and, where something is wrong, what would be right. The last one compiles and runs a
small linear in a process of its own, since code that does not suit a machine may end the process that runs it."""

import json
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...codegen.cache import entries
from ...codegen.cache import executables as cache
from ...ir.errors import LutraError, shortened
from ...ir.weights.formats import WeightFormat, dequantize
from ...ir.weights.rounding import RoundToNearest
from ..nets import described
from ..options import Options

_LIBRARIES = ("torch", "apache-tvm", "apache-tvm-ffi", "torch-mlir", "transformers")
_MOST_SECONDS = 300
_FORMAT = WeightFormat(4, 32)
_MOST_ERROR = 0.03
"""Of the self-test: a product of int8 activations is 1 % off."""
_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Finding:
    """What was looked at, what is there, and what is wrong with it; "" where nothing is."""

    subject: str
    found: str
    wrong: str = ""


def examine(options: Options) -> Iterator[Finding]:
    """All findings, one after the other: the last takes some seconds. `options`: target and cache folder."""
    checks: dict[str, Callable[[Options], Finding]] = {
        "versions": _versions,
        "processor": _processor,
        "target": _target,
        "threads": _threads,
        "cache folder": _cache_folder,
        "C compiler": _compiler,
        "self-test": _self_test,
    }
    for subject, check in checks.items():
        try:
            yield check(options)
        except Exception as error:  # of whatever is broken: that is what a doctor is asked for
            reason = str(error) if isinstance(error, LutraError) else described(error)
            yield Finding(subject, "cannot be told", reason)


def _versions(options: Options) -> Finding:
    wanted = _pinned()
    found, wrong = [f"lutra {metadata.version('lutra')}", f"Python {platform.python_version()}"], []
    for name in _LIBRARIES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(f"no {name}")
            if name in wanted:
                wrong.append(f"{name} is not installed: pip install {name}=={wanted[name]}")
            continue
        found.append(f"{name} {version}")
        if name in wanted and version.split("+")[0] != wanted[name]:
            wrong.append(f"{name} is {version}, this version of lutra is for {wanted[name]}")
    return Finding("versions", ", ".join(found), "; ".join(wrong))


def _pinned() -> dict[str, str]:
    """The version of each library that Lutra needs and is made for."""
    pins = (re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in metadata.requires("lutra") or ())
    return {pin[1]: pin[2] for pin in pins if pin}


def _processor(options: Options) -> Finding:
    lines = _CPU_INFO.read_text().splitlines() if _CPU_INFO.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return Finding("processor", f"{model or platform.processor() or platform.machine()}, {_processors()} CPUs")


def _processors() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _target(options: Options) -> Finding:
    from ...codegen.targets.registry import TARGETS, get_target  # loads TVM

    others = [target for target in TARGETS.values() if target.available()]
    chosen = get_target(options.target)
    there = ", ".join(target.name for target in others if target is not chosen)
    missing = ", ".join(target.name for target in TARGETS.values() if target not in others)
    features = f" ({', '.join(chosen.features)})" if chosen.features else ""
    return Finding("target", f"{chosen.name}{features}; also here: {there or 'none'}; not here: {missing or 'none'}")


def _threads(options: Options) -> Finding:
    threads, processors = torch.get_num_threads(), _processors()
    told = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ]
    found = f"{threads} of torch on {processors} CPUs" + (f" ({', '.join(told)})" if told else "")
    wrong = f"threads wait for each other on too few CPUs: set OMP_NUM_THREADS={processors}"
    return Finding("threads", found, wrong if threads > processors else "")


def _cache_folder(options: Options) -> Finding:
    folder = options.cache_directory()
    if _is_missing(folder):
        above = next(parent for parent in folder.absolute().parents if os.path.lexists(parent))
        able = os.access(above, os.W_OK | os.X_OK)
        wrong = "" if able else f"it cannot be made, since {above} cannot be written: name another with cache_dir"
        return Finding("cache folder", f"{folder}, not made yet", wrong)
    found, wrong = str(folder), ""
    try:
        ours = [item for item in entries.items(folder) if item.kind is not None]
        free = shutil.disk_usage(folder).free
        found += f", {len(ours)} entries of {sum(item.size for item in ours) / 1e6:.1f} MB, {free / 1e9:.1f} GB free"
        with entries.scratch(entries.trusted(folder), "0" * 32):
            pass
        if free < cache.ROOM:
            wrong = f"less than {cache.ROOM >> 20} MB are free"
    except entries.Refused as error:
        wrong = f"it is not trusted, and compiled code is not kept: {error}"
    except OSError as error:
        wrong = f"it cannot be used, and compiled code is not kept: {error.strerror or error}"
    return Finding("cache folder", found, wrong)


def _is_missing(path: Path) -> bool:
    """False, too, for what cannot be there: below a file, or of a name that is too long."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _compiler(options: Options) -> Finding:
    from ...codegen.targets.cpu.launcher import compilers  # loads TVM

    found = [name for name in dict.fromkeys(compilers()) if name]
    if not found:
        return Finding("C compiler", "none", "nothing can link compiled code: install gcc, with g++, or clang")
    told = subprocess.run([found[0], "--version"], capture_output=True, text=True, errors="replace", check=False)
    version = (told.stdout.splitlines() or ["of no version"])[0]
    return Finding("C compiler", f"{' and '.join(found)}: {version}")


def _self_test(options: Options) -> Finding:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lutra-doctor-") as folder:
        # The working directory comes first on a child's path: it is one that nobody else puts modules into.
        command = [sys.executable, "-c", f"from {__name__} import compare; compare()", folder, options.target]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_MOST_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Finding("self-test", "no answer", f"a small linear did not run within {_MOST_SECONDS} seconds")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        hint = 'try options={"target": "portable"}, and report it'
        return Finding("self-test", "failed", f"a small linear ended its process with {name}: {hint}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Finding("self-test", "failed", shortened(last))
    answer = json.loads(lines[-1])
    found = f"a linear of {_FORMAT.bits} bits, compiled and run in {time.perf_counter() - start:.1f} s"
    if "failed" in answer:
        return Finding("self-test", "failed", answer["failed"])
    wrong = list(answer["warnings"])
    if not answer["error"] <= _MOST_ERROR:
        wrong.append(f"its result is {answer['error']:.1%} off what torch computes: report it, with all of this")
    return Finding("self-test", f"{found}, {answer['error']:.1%} off torch's float32", "; ".join(wrong))


def compare() -> None:
    """The self-test, in a process of its own: compile and run a linear of low-bit weights, and print as JSON how far
    its result is off torch's with the same weights, and what was warned of."""
    folder, target = sys.argv[1:]
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("lutra").addHandler(handler)
    entry = {"bits": _FORMAT.bits, "group_size": _FORMAT.group_size}
    recipe: dict[str, Any] = {"lutra": 1, "name": "self-test", "passes": [{"quantize-weights": entry}]}
    options: Any = {"recipe": recipe, "cache_dir": f"{folder}/cache", "target": target, "strict": True}
    model, x = nn.Linear(64, 32).eval(), torch.randn(3, 64)
    try:
        with torch.no_grad():
            got = torch.compile(model, backend="lutra", options=options)(x)
            expected = nn.functional.linear(x, dequantize(RoundToNearest(_FORMAT)(model.weight)), model.bias)
        answer: dict[str, Any] = {"error": float((got - expected).norm() / expected.norm()), "warnings": warnings}
    except Exception as error:
        inner = getattr(error, "inner_exception", error)  # torch wraps what a backend raises
        answer = {"failed": str(inner) if isinstance(inner, LutraError) else described(inner)}
    print(json.dumps(answer))
