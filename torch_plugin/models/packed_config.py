"""The model that a packed folder's `config.json` describes, with shapes and no values.

The file is somebody else's: it names no code to run, nothing to fetch, and makes nothing larger than the weights that
are there. So it is read here and given to the model's class, past Transformers' own reading, which follows what a file
asks for (`auto_map`, versions of it for other releases) and may ask on stdin.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from ...ir.errors import PackedModelError
from .checkpoints.transformers_model import parts_at_most, refusing
from .packed_manifest import CONFIG, GENERATION_CONFIG, Manifest
from .stored_files import read_small

_MOST_BYTES = 1 << 22
_MOST = 1 << 25
"""Of an integer in a configuration, which may count what is made: twice the largest that any model of Transformers has
by default. A base of rotary embeddings counts nothing."""
_MOST_LAYERS = 1 << 16
_BITNET = "bitnet"
_IMPLEMENTATION = re.compile("(attn|experts)_implementation")
_KERNELS = ("eager", "sdpa", "grouped_mm", "batched_mm", None)
"""What these may be: other names are of kernels, which Transformers would fetch."""
_REGISTERED = 64
"""Modules, parameters and buffers of a model, by tensor of the folder: more are not of that folder."""
_PARTS = (
    torch_module.register_module_module_registration_hook,
    torch_module.register_module_parameter_registration_hook,
    torch_module.register_module_buffer_registration_hook,
)


def save_config(module: nn.Module, folder: Path) -> bool:
    """Write the configuration of one of Transformers' own models; False for any other module."""
    try:
        import transformers
    except ImportError:
        return False
    if not isinstance(module, transformers.PreTrainedModel):
        return False
    if getattr(transformers, type(module).__name__, None) is not type(module):
        return False  # made by code that came with a checkpoint
    module.config.save_pretrained(folder)
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text(), object_hook=_without_code), indent=2) + "\n")
    if module.can_generate() and module.generation_config is not None:
        module.generation_config.save_pretrained(folder)
    return True


def _without_code(item: dict[str, Any]) -> dict[str, Any]:
    """Without what a checkpoint named beside the model's own class, and how it was quantised before it was packed."""
    bitnet = _method(item.get("quantization_config")) == _BITNET
    return {k: v for k, v in item.items() if k != "auto_map" and (k != "quantization_config" or bitnet)}


def empty_model(folder: Path, manifest: Manifest) -> nn.Module:
    """The model of `folder` on the meta device; raises `PackedModelError`."""
    if not manifest.model:
        raise PackedModelError(
            f"{folder} is no model of Transformers: load(folder, model) needs a module of its structure"
        )
    cls, path = _model_class(folder, manifest.model), folder / CONFIG
    data = _read(path)
    if data.get("model_type") != cls.config_class.model_type:
        raise PackedModelError(
            f"{path}: model_type is {data.get('model_type')!r}, that of a {manifest.model} is "
            f"{cls.config_class.model_type!r}"
        )
    most = _REGISTERED * (16 + len(manifest.tensors))
    larger = PackedModelError(f"{path} makes a larger model than the one whose weights are in the folder")
    with (
        refusing(f"{path} makes no {manifest.model}", PackedModelError),
        parts_at_most(most, larger, _PARTS),
        torch.device("meta"),
    ):
        model = cls._from_config(cls.config_class.from_dict(data), dtype=getattr(torch, manifest.dtype))
        if data.get("quantization_config"):
            _with_bitnet_layers(model, data["quantization_config"])
    if GENERATION_CONFIG in manifest.files:
        from transformers import GenerationConfig

        path = folder / GENERATION_CONFIG
        with refusing(f"{path} makes no {manifest.model}", PackedModelError):
            model.generation_config = GenerationConfig.from_dict(_read(path))
    return model


def _model_class(folder: Path, name: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise PackedModelError(f"{folder} is a {name}: pip install transformers") from None
    try:
        cls = getattr(transformers, name, None)
    except (ImportError, RuntimeError) as error:  # it needs a package that is not here
        raise PackedModelError(f"{folder} is a {name}, which Transformers cannot make here: {error}") from None
    if cls is None:
        raise PackedModelError(f"this version of Transformers has no {name}: give load(folder, model) one")
    is_model = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    if not is_model or not getattr(cls.config_class, "model_type", ""):
        raise PackedModelError(f"{folder}: {name} of Transformers is not the class of a model")
    return cls


def _method(settings: Any) -> str:
    return str(settings.get("quant_method")) if isinstance(settings, dict) else ""


def _with_bitnet_layers(model: Any, settings: dict[str, Any]) -> None:
    from transformers import BitNetQuantConfig
    from transformers.quantizers.quantizer_bitnet import BitNetHfQuantizer

    config: Any = BitNetQuantConfig.from_dict(settings)
    BitNetHfQuantizer(config, pre_quantized=True).preprocess_model(model)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_small(path, _MOST_BYTES), object_hook=_decoded)
        _check(data, path)
    except (ValueError, RecursionError) as error:
        raise PackedModelError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise PackedModelError(f"{path} is no object of JSON")
    return data


def _decoded(item: dict[str, Any]) -> Any:
    """Transformers writes numbers that JSON lacks as `{"__float__": "Infinity"}`."""
    return float(str(item["__float__"])) if item.keys() == {"__float__"} else item


def _check(value: Any, path: Path, keys: tuple[str, ...] = ()) -> None:
    """Raise `PackedModelError` for what asks for code, or counts more than there can be."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "auto_map" and item:
                raise PackedModelError(f"{path}: auto_map asks for code of the folder's own, which lutra never runs")
            if key == "quantization_config" and item and (keys or _method(item) != _BITNET):
                raise PackedModelError(
                    f"{path}: {'.'.join((*keys, key))} asks for layers of {_method(item)!r}, {_BITNET!r} alone can be "
                    "made: give load(folder, model) a model of them"
                )
            _check(item, path, (*keys, key))
    elif isinstance(value, list):
        for item in value:
            _check(item, path, keys)
    elif any(_IMPLEMENTATION.search(key) for key in keys) and value not in _KERNELS:
        known = ", ".join(kernel for kernel in _KERNELS if kernel)
        raise PackedModelError(f"{path}: {'.'.join(keys)} = {value!r}: kernels are not fetched, it may be {known}")
    elif isinstance(value, int) and keys and "theta" not in keys[-1]:
        most = _MOST_LAYERS if keys[-1].endswith(("layer", "layers")) else _MOST
        if abs(value) > most:
            raise PackedModelError(f"{path}: {'.'.join(keys)} = {value}: more than {most} is not plausible")
