"""What is generated of the documents: `make figures`. Tables and plot from the results that are stored, the list of
operations from their classes.

    python benchmarks/figures.py

Writes docs/performance.md, docs/speed-quality.svg, docs/operations.md, and the tables of README.md and docs/recipes.md
between their markers. Nothing is timed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from lutra.cli.operations import document
from results import ROOT, Column, Machine, Run, load
from speed_quality import plot

PERFORMANCE, PLOT = Path("docs/performance.md"), Path("docs/speed-quality.svg")
README, RECIPES = Path("README.md"), Path("docs/recipes.md")
OPERATIONS = Path("docs/operations.md")
BEGIN, END = "<!-- figures: {} -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Topic:
    """A section of docs/performance.md. settings: those that stand in every row."""

    benchmark: str
    title: str
    text: str
    settings: tuple[str, ...] = ()


TOPICS = (
    Topic(
        "peers",
        "Decode and prefill, against other engines",
        """\
A Llama of 1.1B shape with random weights. Engines of one run take turns. Figures are medians.
The read ceiling is how fast this machine reads memory, measured in the same run.
It moves with what else a shared machine does, so compare engines within a run.
`make peers` installs the engines.""",
        ("prompt", "batch", "module guards"),
    ),
    Topic(
        "decode",
        "First call and memory",
        """\
The same model. First call: with empty caches, compiling included. With warm cache: in a second process.
Peak: resident memory above the process before it had weights.""",
    ),
    Topic(
        "packed",
        "Loading a packed model",
        """\
In a new process. Resident: above the process before it loaded.
A first generation traces the model with torch.""",
    ),
    Topic(
        "cost",
        "Predicted decode time",
        "What `lutra explain` predicts, against what is measured ([how](explain.md)).",
    ),
    Topic(
        "recipes",
        "Recipes on the small trained model",
        """\
Decode is by `generate`, perplexity is on held-out text.
A step of so small a model is mostly operator dispatch under eager, and little of it is reading weights.""",
    ),
    Topic(
        "quality",
        "Quality at equal bits",
        """\
Perplexity of the small trained model on held-out text, by method of rounding.
Calibration sees other text than is evaluated.""",
    ),
)
HEADER = """\
# Performance

`make figures` writes this file from `benchmarks/results/`, one file a run. A benchmark's `--save FILE` adds one.
An empty cell was not measured.
"""


def generated(runs: Sequence[Run], written: Mapping[Path, str]) -> dict[Path, str]:
    """Text of every generated file, by path from the root; `written`: what README.md and docs/recipes.md hold now.

    Raises `ValueError` when one of them lacks markers, `LookupError` when `runs` lack what they or the plot need."""
    recipes, sentences, demo = (widest(runs, name) for name in ("recipes", "sentences", "demo"))
    readme = between_markers(written[README], README, "recipes", recipes_table(recipes, sentences))
    return {
        PERFORMANCE: performance(runs),
        OPERATIONS: document(),
        PLOT: plot(widest(runs, "peers"), recipes),
        README: between_markers(readme, README, "demo", whole_table(demo)),
        RECIPES: between_markers(written[RECIPES], RECIPES, "sentences", whole_table(sentences)),
    }


def widest(runs: Iterable[Run], benchmark: str) -> Run:
    """The run of `benchmark` that has the most rows, of these the newest; raises `LookupError` when there is none."""
    of_benchmark = [run for run in runs if run.benchmark == benchmark]
    if not of_benchmark:
        raise LookupError(f"no run of {benchmark!r} is stored")
    return max(of_benchmark, key=lambda run: (len(run.rows), run.date or date.min))


def performance(runs: Sequence[Run]) -> str:
    """docs/performance.md: a section a benchmark, in it one table a machine, runs with the most rows first."""
    parts = [HEADER]
    for topic in TOPICS:
        by_machine: dict[Machine | None, list[Run]] = {}
        for run in sorted(runs, key=lambda run: -len(run.rows)):
            if run.benchmark == topic.benchmark:
                by_machine.setdefault(run.machine, []).append(run)
        if by_machine:
            parts.append(f"## {topic.title}\n\n{topic.text}\n")
        for machine, of_machine in sorted(by_machine.items(), key=lambda item: str(item[0])):
            parts += [f"### {_name(machine)}\n", _rows_of(of_machine, topic), _list_of(of_machine, topic)]
    return "\n".join(parts)


def recipes_table(run: Run, sentences: Run) -> str:
    """The rows of `run` whose speed was measured, eager and the recipes, with what recipes do to sentence vectors."""
    places = [place for place, column in enumerate(run.columns) if column.name != "decode"]
    cosine, cosines = Column(name="MiniLM, cosine", digits=3), sentences.column("as it ships")
    speeds = run.column("decode")
    timed = [row for row in run.rows if speeds[str(row[0])] is not None]
    rows = [
        [*(run.columns[place].text(row[place]) for place in places), cosine.text(cosines.get(str(row[0])))]
        for row in timed
    ]
    table = markdown([*(run.columns[place] for place in places), cosine], rows)
    return table + _origin(run) + f"MiniLM: mean cosine of sentence vectors to eager's; `{sentences.command}`.\n"


def whole_table(run: Run) -> str:
    """A table of all rows of `run`."""
    rows = [[column.text(cell) for column, cell in zip(run.columns, row, strict=True)] for row in run.rows]
    return markdown(run.columns, rows) + _origin(run)


def between_markers(text: str, path: Path, name: str, content: str) -> str:
    """`text`, of the file `path`, with `content` between the markers of `name`."""
    start = BEGIN.format(name)
    before, begin, rest = text.partition(start)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has not both of {start} and, behind it, {END}")
    return f"{before}{begin}\n{content}{end}{after}"


def markdown(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    """A table; numbers are aligned to the right."""
    rules = ["---:" if column.unit or column.digits else "---" for column in columns]
    lines = [[column.heading for column in columns], rules, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _rows_of(runs: Sequence[Run], topic: Topic) -> str:
    """All rows of `runs`, with the number of their run where there are several."""
    columns = list({column.name: column for run in runs for column in run.columns}.values())
    settings = [name for name in topic.settings if any(name in run.setting for run in runs)]
    leading = [Column(name=name) for name in (["run"] if len(runs) > 1 else []) + settings]
    rows = []
    for number, run in enumerate(runs, 1):
        known = {"run": str(number)} | {name: _plain(value) for name, value in run.setting.items()}
        for row in run.rows:
            cells = {column.name: column.text(cell) for column, cell in zip(run.columns, row, strict=True)}
            rows.append([*(known.get(c.name, "") for c in leading), *(cells.get(c.name, "") for c in columns)])
    return markdown([*leading, *columns], rows)


def _list_of(runs: Sequence[Run], topic: Topic) -> str:
    """How each of `runs` was made."""
    lines = []
    for number, run in enumerate(runs, 1):
        setting = {name: value for name, value in run.setting.items() if name not in topic.settings}
        known = (run.command and f"`{run.command}`", run.commit, run.date and str(run.date))
        shared = "; ".join(f"{name}: {_plain(value)}" for name, value in setting.items())
        lines.append([str(number), *(text or "not recorded" for text in known), shared])
    return markdown([Column(name=name) for name in ("run", "command", "commit", "date", "setting")], lines)


def _origin(run: Run) -> str:
    threads = f"; threads: {run.setting['threads']}" if "threads" in run.setting else ""
    return f"\n{_name(run.machine)}{threads}; `{run.command}`.\n"


def _name(machine: Machine | None) -> str:
    return "Machine not recorded" if machine is None else str(machine)


def _plain(value: str | bool | int | float) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def main() -> None:
    """Write every generated file."""
    written = {path: (ROOT / path).read_text(encoding="utf-8") for path in (README, RECIPES)}
    for path, text in generated(load(), written).items():
        (ROOT / path).write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
