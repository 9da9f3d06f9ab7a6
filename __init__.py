"""Lutra: a `torch.compile` backend that turns published inference-efficiency techniques into YAML recipes.

fast = torch.compile(model, backend="lutra", options={"recipe": "w4"})
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `_EXPORTS` loads, for type checkers
    from .ir.errors import LutraError
    from .passes.calibration import calibrate
    from .recipes.loading import load_recipe
    from .recipes.schema import Recipe
    from .torch_plugin.explain import explain
    from .torch_plugin.given_model import adopt_torchao
    from .torch_plugin.loading import load
    from .torch_plugin.packed_model import pack, verify
    from .torch_plugin.profiling import profile
    from .torch_plugin.report import report

__version__ = "0.1.0"

_EXPORTS = {
    "LutraError": ".ir.errors",
    "Recipe": ".recipes.schema",
    "adopt_torchao": ".torch_plugin.given_model",
    "calibrate": ".passes.calibration",
    "explain": ".torch_plugin.explain",
    "load": ".torch_plugin.loading",
    "load_recipe": ".recipes.loading",
    "pack": ".torch_plugin.packed_model",
    "profile": ".torch_plugin.profiling",
    "report": ".torch_plugin.report",
    "verify": ".torch_plugin.packed_model",
}
__all__ = [
    "LutraError",
    "Recipe",
    "__version__",
    "adopt_torchao",
    "calibrate",
    "explain",
    "load",
    "load_recipe",
    "pack",
    "profile",
    "report",
    "verify",
]

if not TYPE_CHECKING:  # else a type checker would take any name

    def __getattr__(name: str) -> Any:
        """Exports are loaded on first use, so that `import lutra` stays light."""
        if name not in _EXPORTS:
            raise AttributeError(f"module 'lutra' has no attribute {name!r}")
        return getattr(importlib.import_module(_EXPORTS[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
