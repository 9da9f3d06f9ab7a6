"""`lutra doctor`: whether this machine has what Lutra needs."""

from ..ir.errors import LutraError
from ..torch_plugin.inspect.progress import ProgressBar
from ..torch_plugin.options import Options
from .app import CacheDir, app, show, table


@app.command()
def doctor(cache_dir: CacheDir = None) -> None:
    """Say what Lutra finds on this machine, compile and run something small, and say what is wrong; exit code 2 if
    something is."""
    from ..torch_plugin.inspect.doctor import examine  # loads torch

    with ProgressBar("look at this machine", None):
        findings = list(examine(Options.parse({"cache_dir": cache_dir})))
    found = table("", "found")
    for finding in findings:
        found.add_row(finding.subject, finding.found)
    show(found)
    if wrong := [f"{finding.subject}: {finding.wrong}" for finding in findings if finding.wrong]:
        raise LutraError("; ".join(wrong))
    print("nothing is wrong")
