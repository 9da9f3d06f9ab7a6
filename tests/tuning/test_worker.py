"""Workers: what happens in one process stays there, and errors come back as messages."""

import os
import subprocess
import time

import pytest
from lutra.ir.errors import OptionError
from lutra.tuning.worker import Worker, WorkerEnded, WorkerError, WorkerLate, explain


class Counter:
    """Counts in its own process."""

    def __init__(self, start: int) -> None:
        if start < 0:
            raise OptionError("start must not be negative")
        self._value = start

    def add(self, number: int = 1) -> int:
        self._value += number
        return self._value

    def environment(self, name: str) -> tuple[int, str | None]:
        return os.getpid(), os.environ.get(name)

    def fail(self) -> None:
        raise RuntimeError("broken") from OptionError("option 'recipe' is wrong")

    def leave(self) -> None:
        os._exit(3)

    def hang(self) -> None:
        time.sleep(600)


def test_state_and_environment_belong_to_the_worker():
    with Worker(Counter, 5, environment={"LUTRA_TEST": "inside"}) as worker:
        assert worker.call("add") == 6
        assert worker.call("add", number=4) == 10
        process, value = worker.call("environment", "LUTRA_TEST")
    assert process != os.getpid() and value == "inside"
    assert "LUTRA_TEST" not in os.environ


def test_an_error_of_a_call_is_raised_here_and_the_worker_goes_on():
    with Worker(Counter, 0) as worker:
        with pytest.raises(WorkerError, match=r"^option 'recipe' is wrong$"):
            worker.call("fail")
        with pytest.raises(WorkerError, match="no attribute 'nothing'"):
            worker.call("nothing")
        assert worker.call("add") == 1


def test_a_worker_that_ends_is_an_error_not_a_hang():
    with Worker(Counter, 0) as worker:
        with pytest.raises(WorkerEnded, match="exit code 3"):
            worker.call("leave")
        with pytest.raises(WorkerEnded, match="ended"):
            worker.call("add")


def test_a_call_that_takes_too_long_ends_the_worker():
    with Worker(Counter, 0) as worker:
        assert worker.call_within(60, "add") == 1
        with pytest.raises(WorkerLate, match=r"0\.1 seconds"):
            worker.call_within(0.1, "hang")
        with pytest.raises(WorkerEnded):
            worker.call("add")


def test_an_error_while_the_object_is_made_is_raised_here():
    with pytest.raises(WorkerError, match="start must not be negative"):
        Worker(Counter, -1)


def test_an_error_that_is_not_ours_keeps_its_traceback():
    try:
        subprocess.run(["false"], check=True)
    except subprocess.CalledProcessError as error:
        assert "Traceback" in explain(error) and "CalledProcessError" in explain(error)
