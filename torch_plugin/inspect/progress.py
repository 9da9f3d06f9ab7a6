"""Progress bars on stderr, for what makes a user wait (`options["progress"]`): compiling, packing, measuring."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class ProgressBar:
    """One bar: what is done, the step that runs, and the time that has passed.

    wanted: True or False; None for a bar where stderr is a terminal, which is gone when the work is done. still: no
    thread redraws it between steps, for work whose time is measured."""

    def __init__(self, what: str, wanted: bool | None, still: bool = False) -> None:
        console = Console(stderr=True)
        self._still = still
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[step]}"),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=not still,
            transient=wanted is None,
            redirect_stdout=False,  # what others print meanwhile stays where it belongs
            disable=not (console.is_terminal if wanted is None else wanted),
        )
        self._task = self._progress.add_task(f"lutra: {what}", total=None, step="")

    def step(self, name: str, done: int = 0, total: int = 0) -> None:
        """Show `name` as the running step, `done` of `total`; 0: nobody knows of how many."""
        text = f"{name} {done}/{total}" if total else name
        self._progress.update(self._task, step=text, total=total or None, completed=done, refresh=self._still)

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.update(self._task, step="failed" if kind else "done", total=1, completed=1)
        self._progress.stop()
