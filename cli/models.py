"""`lutra pack`, `verify`, `profile`, `explain`: what is done with a model."""

from pathlib import Path
from typing import Annotated

import typer

from ..ir.errors import LutraError
from ..recipes.reading import parse_variables
from ..torch_plugin.inspect.progress import ProgressBar
from .app import MOST_TOKENS, DtypeName, ModelName, RecipeName, Variables, app, path, show, table, wide


@app.command()
def pack(
    model: Annotated[str, typer.Argument(help="folder, hub name or .gguf file of a causal language model")],
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=path, help="new or empty folder for the packed model")
    ],
    recipe: RecipeName = None,
    var: Variables = None,
    dtype: DtypeName = "auto",
) -> None:
    """Write a model with its weights packed for this machine's kernels; `lutra.load(folder)` then needs no other file.

    The model is compiled for a prefill and decode steps over a static cache, on the way to its packed form."""
    from ..torch_plugin.inspect.report import report
    from ..torch_plugin.models.causal_lm import generate, load_causal_lm, load_tokenizer
    from ..torch_plugin.models.packed_manifest import is_packed
    from ..torch_plugin.models.packed_model import check_new
    from ..torch_plugin.models.packed_model import pack as write

    if is_packed(model):
        raise LutraError(f"{model} is packed already")
    check_new(output)
    tokenizer = load_tokenizer(model)
    loaded = load_causal_lm(model, dtype, recipe, parse_variables(var or []), default="w4")
    generate(loaded, prompt=32, new_tokens=2)
    size = write(loaded, output, tokenizer)
    wide().print(report(loaded).weights)
    print(f"{output}: {size / 1e6:.1f} MB of weights{'' if tokenizer else ', no tokenizer found'}")


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="a packed folder")]) -> None:
    """Check a packed folder against its checksums and its manifest, without giving values to a model."""
    from ..torch_plugin.models.packed_model import verify as check

    found, checked = table("file", "bytes", "is"), check(folder)
    for name, size in checked.items():
        found.add_row(name, f"{size:,}", "as it was written")
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name not in checked:
            found.add_row(file.name, f"{file.stat().st_size:,}", "not of the packed model: lutra does not read it")
    show(found)


@app.command()
def profile(
    model: ModelName,
    recipe: RecipeName = None,
    var: Variables = None,
    dtype: DtypeName = "auto",
    prompt: Annotated[int, typer.Option(help="prompt tokens", min=2, max=MOST_TOKENS)] = 128,
    new_tokens: Annotated[int, typer.Option(min=2, max=MOST_TOKENS)] = 16,
    trace: Annotated[Path | None, typer.Option(parser=path, help="write the timeline there, as a Chrome trace")] = None,
) -> None:
    """Say where the time of a prefill and of decode steps goes, kernel by kernel."""
    from ..torch_plugin.inspect.profiling import profile as watch
    from ..torch_plugin.models.causal_lm import generate, load_causal_lm

    loaded = load_causal_lm(model, dtype, recipe, parse_variables(var or []), default="none")
    generate(loaded, prompt, new_tokens)  # compiles
    with ProgressBar(f"watch {prompt} tokens and {new_tokens} new ones", None, still=True), watch(loaded) as timeline:
        generate(loaded, prompt, new_tokens)
    wide().print(timeline)
    if trace is not None:
        timeline.save(trace)
        print(f"timeline: {trace} (open it in chrome://tracing or ui.perfetto.dev)")


@app.command()
def explain(
    model: ModelName,
    recipe: RecipeName = None,
    var: Variables = None,
    dtype: DtypeName = "auto",
    batch: Annotated[int, typer.Option(help="sequences", min=1, max=4096)] = 1,
    context: Annotated[int, typer.Option(help="tokens that the step attends to", min=3, max=MOST_TOKENS)] = 128,
    layers: Annotated[bool, typer.Option("--layers", help="also every linear: its format, kernels and time")] = False,
) -> None:
    """Predict bytes, operations and time of a decode step. The first time this measures the machine, for a minute."""
    from ..torch_plugin.inspect.report import report
    from ..torch_plugin.models.causal_lm import generate, load_causal_lm
    from ..tuning.explain import explain as predict

    loaded = load_causal_lm(model, dtype, recipe, parse_variables(var or []), default="none")
    generate(loaded, context - 1, 2, batch)  # compiles, over a cache of `context` tokens
    explanation = predict(loaded, context, batch)
    console = wide()
    console.print(explanation)
    console.print(report(loaded).weights)
    if layers:
        console.print(explanation.layers())
