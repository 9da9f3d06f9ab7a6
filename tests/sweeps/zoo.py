"""Every causal language model of Transformers, shrunken, against eager: `make test-zoo`.

python -m lutra.tests.sweeps.zoo [--slice 0/8] [--only gemma] [--again ERROR]
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import lutra
import torch
import transformers
import typer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .compare import difference
from .op_db import attempt, reason
from .shrink import shrunken
from .sweep import Outcome, Sweep, select, summarize

PROMPT, NEW = 9, 12


def build(name: str) -> Any:
    """The model of that `model_type` with random weights, the same each time. Raises what its constructor raises."""
    entry = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]
    kind = getattr(transformers, entry if isinstance(entry, str) else entry[0])
    config = shrunken(kind.config_class)
    torch.manual_seed(0)
    return kind(config).eval()


class ModelJudge:
    """Judges one model: the logits of a prompt, and greedy tokens after two prompts, one padded on the left."""

    def __init__(self) -> None:
        transformers.logging.set_verbosity_error()

    def judge(self, name: str) -> tuple[Outcome, str]:
        try:
            expected = answers(build(name))
        except Exception as error:
            return "excluded", f"does not build: {reason(error)}"
        if isinstance(expected["forward"], Exception):
            return "excluded", f"eager: {reason(expected['forward'])}"
        model, actual = compiled(name, "lutra")
        outcome, detail = judged(expected, actual)
        if outcome != "right":
            _, by_torch = compiled(name, "aot_eager")
            if judged(expected, by_torch)[0] == outcome:
                return "excluded", f"torch.compile with aot_eager is no better: {detail}"
            return outcome, detail
        graphs = lutra.report(model).graphs
        if not graphs:
            return "nets", "no graph ran on lutra"
        fallbacks = sorted({operator for graph in graphs for operator in graph.fallbacks})
        fallen = [f"torch ran a whole {graph.phase} graph: {graph.fell}" for graph in graphs if graph.fell is not None]
        notes = [*fallen, *([f"torch operators: {', '.join(fallbacks)}"] if fallbacks else [])]
        notes += [f"{what} raises in eager" for what, answer in expected.items() if isinstance(answer, Exception)]
        return ("nets" if fallbacks or fallen else "right"), "; ".join(notes)


def compiled(name: str, backend: str) -> tuple[Any, dict[str, Any]]:
    """A new model of that name, compiled, and its answers."""
    model = build(name)
    model.compile(backend=backend)
    return model, answers(model)


def answers(model: Any) -> dict[str, Any]:
    """What is compared: each a tree of tensors, or the exception that the model raises. Calls share no shape, and each
    starts without compiled graphs, so that what torch makes dynamic is what generation itself changes."""
    ids = torch.randint(4, 128, (2, PROMPT), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    lengths = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 1}
    results = {"return_dict_in_generate": True, "output_logits": True}

    def generated(**given: Any) -> Any:
        done = model.generate(**given, **lengths, **results)
        return done.sequences, done.logits

    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: model(ids[:1]).logits,
        "generate": lambda: generated(input_ids=ids, attention_mask=mask),
    }
    found: dict[str, Any] = {}
    for what, call in calls.items():
        torch._dynamo.reset()
        with torch.no_grad():
            found[what] = attempt(call)
    if isinstance(found["generate"], Exception):  # not every model takes padding, or a batch
        torch._dynamo.reset()
        with torch.no_grad():
            found["generate after one prompt"] = attempt(lambda: generated(input_ids=ids[1:]))
    return found


def judged(expected: dict[str, Any], actual: dict[str, Any]) -> tuple[Outcome, str]:
    """right, WRONG or ERROR. A call that eager refuses (a padded batch) is not compared."""
    for what, want in expected.items():
        if isinstance(want, Exception):
            continue
        got = actual.get(what)
        if isinstance(got, Exception):
            return "ERROR", f"{what}: {reason(got)}"
        found = difference(want, got)
        if found is not None:
            return "WRONG", f"{what}: {found}"
    return "right", ""


def main(
    part: Annotated[str, typer.Option("--slice", help="I/N: every N-th model, from the I-th on")] = "0/1",
    only: Annotated[list[str] | None, typer.Option(help="models whose type has this in it")] = None,
    again: Annotated[list[str] | None, typer.Option(help="outcomes to try again, others are kept")] = None,
    timeout: Annotated[float, typer.Option(help="seconds for one model")] = 600,
    jobs: Annotated[int, typer.Option(help="worker processes")] = 2,
    folder: Annotated[Path, typer.Option(help="results.jsonl is there: a run goes on where it stopped")] = Path(
        "build/zoo"
    ),
) -> None:
    """Every causal language model of Transformers gives eager's logits and tokens."""
    sweep = Sweep(ModelJudge, (), folder, timeout, jobs, lifetime=40)
    results = sweep.run(select(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), part, only or []), again or [])
    raise typer.Exit(summarize(results, "Causal language models of Transformers"))


if __name__ == "__main__":
    typer.run(main)
