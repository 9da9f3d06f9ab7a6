"""The plot of speed against quality: how fast engines decode a large model, and what their weights cost a small one."""

from io import StringIO

from results import Run

EAGER = "eager"
AS_EAGER = ("eager", "inductor")
"""Engines that round no weights."""
STYLE = {
    "svg.hashsalt": "lutra",  # else ids are random
    "svg.fonttype": "none",  # text stays text
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def points(speeds: Run, quality: Run) -> dict[str, tuple[float, float]]:
    """Engine -> decode tokens per second and perplexity, for those of `speeds` whose perplexity `quality` has."""
    perplexities = quality.column("perplexity")
    found = {}
    for name, speed in speeds.column("decode").items():
        value = perplexities.get(EAGER if name in AS_EAGER else name)
        if isinstance(speed, int | float) and isinstance(value, int | float):
            found[name] = (float(speed), float(value))
    return found


def plot(speeds: Run, quality: Run) -> str:
    """SVG text, the same for the same runs. Raises `LookupError` when they have no engine in common."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    marked = points(speeds, quality)
    if not marked:
        raise LookupError("no engine has both a speed and a perplexity")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 4.4), layout="constrained")
        axes = figure.subplots()
        for ours, label, color in ((True, "Lutra", "#b5451b"), (False, "others", "#4a5a6a")):
            chosen = [point for name, point in marked.items() if _is_ours(name) is ours]
            axes.scatter(*zip(*chosen, strict=True), color=color, label=label) if chosen else None
        for number, (name, point) in enumerate(sorted(marked.items(), key=lambda item: item[1])):
            place = (0, -13) if number % 2 else (0, 7)  # above and below in turns, for the sake of neighbours
            axes.annotate(name, point, xytext=place, textcoords="offset points", ha="center")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 2.5, 3, 4, 6, 8)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.12, y=0.1)
        axes.set_xlabel(f"decode, tokens/s, 1.1B shape ({speeds.machine}): faster to the right")
        axes.set_ylabel("perplexity, small trained model: better below")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _is_ours(name: str) -> bool:
    return ":" not in name and name not in (*AS_EAGER, "torchao-int4", "openvino-int4")
