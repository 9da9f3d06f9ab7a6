"""Progress bars for compile steps, on request (`options["progress"]`)."""

from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..ir.graph import Graph


class CompileProgress:
    """One bar per graph: its phase and the step that runs. Silent when not enabled."""

    def __init__(self, enabled: bool, graph: Graph) -> None:
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[step]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, transient=False, disable=not enabled)
        self._task = self._progress.add_task(f"lutra: compile {graph.phase}", total=None, step="")

    def step(self, name: str) -> None:
        """Show `name` as the running step."""
        self._progress.update(self._task, step=name)

    def __enter__(self) -> "CompileProgress":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.update(self._task, step="failed" if kind else "done", total=1, completed=1)
        self._progress.stop()
