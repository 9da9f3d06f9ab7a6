"""Lutra: a `torch.compile` backend that turns published inference-efficiency techniques into YAML recipes.

fast = torch.compile(model, backend="lutra", options={"recipe": "w4"})
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `_EXPORTS` loads, for type checkers
    from .ir.errors import LutraError
    from .passes.calibration import calibrate
    from .passes.registry import register_pass
    from .recipes.loading import load_recipe
    from .recipes.schema import Recipe
    from .torch_plugin.inspect.profiling import profile
    from .torch_plugin.inspect.report import report
    from .torch_plugin.models.given_model import adopt_torchao
    from .torch_plugin.models.loading import load
    from .torch_plugin.models.packed_model import (
        pack,
        verify,
    )
    from .tuning.explain import explain

__version__ = "0.1.0"

_EXPORTS = {
    "LutraError": ".ir.errors",
    "Recipe": ".recipes.schema",
    "adopt_torchao": ".torch_plugin.models.given_model",
    "calibrate": ".passes.calibration",
    "explain": ".tuning.explain",
    "load": ".torch_plugin.models.loading",
    "load_recipe": ".recipes.loading",
    "pack": ".torch_plugin.models.packed_model",
    "profile": ".torch_plugin.inspect.profiling",
    "register_pass": ".passes.registry",
    "report": ".torch_plugin.inspect.report",
    "verify": ".torch_plugin.models.packed_model",
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
    "register_pass",
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
