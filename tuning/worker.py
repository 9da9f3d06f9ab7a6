"""An object in a process of its own, called from this one: engines that are compared share neither memory nor caches.

with Worker(Engine, "w4", environment={"LUTRA_CACHE_DIR": folder}) as engine:
    engine.call("run", 32)

One call runs at a time, in the order in which the caller asks, so that idle workers leave the machine to the one that
is measured.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from ..ir.errors import LutraError


class WorkerError(LutraError):
    """The object in the worker could not be made, a call of it failed, or the worker ended."""


class WorkerEnded(WorkerError):
    """The process ended by itself: a crash, when nobody asked it to."""


class WorkerLate(WorkerError):
    """No answer within the time allowed; the process was killed."""


class Worker:
    """Makes `factory(*arguments)` in a new process of the same Python, with `environment` over this process's own.

    `factory`, arguments and results must pickle. Raises `WorkerError` when the factory raises."""

    def __init__(
        self, factory: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # Not a daemon: a daemon may not start processes, and compilers do. It ends when its pipe does.
        self._process = context.Process(target=_serve, args=(theirs, factory, arguments))
        with _environment(environment or {}):
            self._process.start()
        theirs.close()
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """The result of that method of the object; raises `WorkerError` with the message of what it raised."""
        return self.call_within(None, method, *arguments, **keywords)

    def call_within(self, seconds: float | None, method: str, *arguments: Any, **keywords: Any) -> Any:
        """As `call`; kills the process and raises `WorkerLate` when the answer takes longer than `seconds`."""
        try:
            self._connection.send((method, arguments, keywords))
        except OSError:
            raise WorkerEnded(f"{method}: the worker process has ended") from None
        return self._receive(seconds)

    def close(self) -> None:
        """End the process; a second call does nothing."""
        self._connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self, seconds: float | None = None) -> Any:
        try:
            if not self._connection.poll(seconds):
                self._process.kill()
                self._process.join()
                raise WorkerLate(f"no answer within {seconds} seconds")
            succeeded, value = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(timeout=10)
            raise WorkerEnded(f"the worker process ended with exit code {self._process.exitcode}") from None
        if not succeeded:
            raise WorkerError(value)
        return value

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """`changes` in `os.environ` while a process is started, which inherits them before it imports anything."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, factory: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """The worker's life: make the object, then answer calls until the other end closes."""
    try:
        try:
            served = factory(*arguments)
        except Exception as error:
            connection.send((False, explain(error)))
            return
        connection.send((True, None))
        while True:
            method, positional, keywords = connection.recv()
            try:
                connection.send((True, getattr(served, method)(*positional, **keywords)))
            except Exception as error:
                connection.send((False, explain(error)))
    except (EOFError, OSError, KeyboardInterrupt):  # the other end is gone
        return


def explain(error: BaseException) -> str:
    """The message of the `LutraError` behind `error` (torch wraps what a backend raises); else the traceback."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, LutraError):
        inner = getattr(inner, "inner_exception", None) or inner.__cause__
    return str(inner) if inner is not None else "".join(traceback.format_exception(error)).strip()
