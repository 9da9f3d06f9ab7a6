"""Does a change of the house change any code? The TIR of every library recipe on three models, before and after.

    git checkout BEFORE; python -m lutra.tests.support.replay build/before
    git checkout AFTER;  python -m lutra.tests.support.replay build/after --against build/before

Names of functions do not count: each is replaced by a digest of what it does.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from difflib import unified_diff
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from lutra.codegen.lowering.graph import lower_graph
from lutra.codegen.targets.registry import get_target
from lutra.ir.graph import Graph
from lutra.passes.pipeline import run_passes
from lutra.recipes.loading import library
from lutra.torch_plugin.capture import capture
from lutra.torch_plugin.facts import graph_facts
from lutra.torch_plugin.model_state import ModelState
from lutra.torch_plugin.nets import TorchGraph
from lutra.torch_plugin.options import Options
from lutra.torch_plugin.retracing import trace_as_wanted
from torch import nn

_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**_SIZES, num_key_value_heads=1, head_dim=64, sliding_window=8)
    ),
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**_SIZES, num_key_value_heads=1, num_local_experts=4)
    ),
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**_SIZES)),
}
"""Two decoders, with everything that norms, windows and experts bring, and an encoder."""


class Replay:
    """A backend that compiles no code: it keeps the normal form of each graph's TIR, and torch runs the graph."""

    def __init__(self, recipe: str, target: str) -> None:
        self.texts: dict[str, str] = {}
        self._state = ModelState(Options.parse({"recipe": recipe}))
        self._target = get_target(target, cross=True)

    def __call__(self, gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        trace_as_wanted(gm, inputs)
        return capture(gm, inputs, self._state.store, self._keep)

    def _keep(self, graph: Graph, functional: torch.fx.GraphModule) -> Callable[..., Any]:
        run_passes(graph, self._state.recipe.steps, graph_facts(graph))
        module, _ = self._target.pipeline(lower_graph(graph, self._target).module)
        name, copies = graph.phase, 1
        while name in self.texts:
            copies += 1
            name = f"{graph.phase}-{copies}"
        self.texts[name] = normal_form(module)
        return TorchGraph.of(functional).boxed(None)


def normal_form(module: Any) -> str:
    """The text of a Relax module whose functions are named by what they do, in the order of their names."""
    functions = {str(v.name_hint): f.without_attr("global_symbol").script() for v, f in module.functions_items()}
    names = "|".join(sorted(map(re.escape, functions), key=len, reverse=True))
    tokens = re.compile(rf"(?<![\w.])(cls\.|Module\.)?({names})(?!\w)")
    kernels = {name: text for name, text in functions.items() if "@R.function" not in text}
    digests = {name: hashlib.sha256(tokens.sub("f", text).encode()).hexdigest()[:12] for name, text in kernels.items()}

    def named(text: str) -> str:
        return tokens.sub(lambda m: (m[1] or "") + f"f_{digests.get(m[2], m[2])}", text)

    return "\n\n".join(sorted({named(text) for text in functions.values()}))


def replay(recipe: str, model: str, target: str = "avx2") -> dict[str, str]:
    """TIR of the graphs of `model` under `recipe`, by phase: two prompts and two steps, or one batch of an encoder."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    net, backend = MODELS[model]().eval(), Replay(recipe, target)
    tokens = torch.arange(1, 8).unsqueeze(0)
    net.forward = torch.compile(net.forward, backend=backend)
    with torch.no_grad():
        if model == "bert":
            net(tokens)
        else:
            keywords = {"max_new_tokens": 3, "do_sample": False, "disable_compile": True}
            net.generate(tokens, cache_implementation="static", **keywords)  # pyright: ignore[reportCallIssue]
    return backend.texts


def main(
    folder: Annotated[Path, typer.Argument(help="Where the texts are written.")],
    against: Annotated[Path | None, typer.Option(help="A folder of texts to compare with.")] = None,
    target: Annotated[str, typer.Option(help="What code is made for.")] = "avx2",
) -> None:
    """Write TIR of every library recipe on three models; exit code 1 where it differs."""
    folder.mkdir(parents=True, exist_ok=True)
    differing = 0
    for recipe in sorted(library()):
        for model in MODELS:
            for phase, text in replay(recipe, model, target).items():
                name = f"{recipe}-{model}-{phase}.txt"
                (folder / name).write_text(text)
                if against is None:
                    continue
                before = (against / name).read_text() if (against / name).exists() else ""
                if before != text:
                    differing += 1
                    typer.echo("\n".join(list(unified_diff(before.split("\n"), text.split("\n"), name, name))[:40]))
    if against is not None:
        typer.echo(f"{differing} of {len(list(folder.glob('*.txt')))} graphs differ")
        raise typer.Exit(differing > 0)


if __name__ == "__main__":
    typer.run(main)
