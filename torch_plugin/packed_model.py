"""Models on disk in packed form: what `lutra pack` writes and `lutra.load` reads, without the original checkpoint.

lutra.json              recipe, target, and where each tensor of the model is
packed.safetensors      packed weights, mapped into memory (`codegen/packed_file.py`)
plain.safetensors       every other tensor that the graphs read, mapped as well
config.json, ...        what Transformers needs to build the model
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..codegen.packed_file import restore_packed, write_packed
from ..codegen.weights import PlainWeight
from ..ir.errors import OptionError, PackedModelError
from ..ir.params import ParameterStore
from ..ir.quantization import Scheme, WeightFormat
from .model_state import ModelState, keep_state
from .options import Options
from .release import unreadable
from .report import module_of, states_of

logger = logging.getLogger("lutra")
MANIFEST, PACKED, PLAIN = "lutra.json", "packed.safetensors", "plain.safetensors"
_DERIVED = "derived|"
"""What precedes the symbol of a derived tensor in the file of plain ones."""
_OWN_OPTIONS = ("recipe", "vars", "calibration")


class StoredTensor(BaseModel):
    """A parameter or buffer: `symbol` in the graphs, and whether its values are in the plain file, rows of a derived
    tensor there (`rows_of`, from `first_row`), or packed only."""

    symbol: str | None
    shape: list[int]
    dtype: str
    persistent: bool
    where: Literal["plain", "rows", "packed"]
    rows_of: str = ""
    first_row: int = 0


class Manifest(BaseModel):
    """`lutra.json`. `choices`: rule, tensor, quantised form and its format (bits, group size, scheme), which passes
    keep to. `model`: the class of Transformers, or "" for another module."""

    lutra: Literal[1]
    model: str
    dtype: str
    recipe: str
    target: str
    kernel_family: str
    tensors: dict[str, StoredTensor]
    choices: list[tuple[str, str, str, tuple[int, int, Scheme]]]


def is_packed(folder: Path | str) -> bool:
    """True when `folder` holds what `pack` wrote."""
    return (Path(folder) / MANIFEST).is_file()


def check_new(folder: Path) -> None:
    """Raise `PackedModelError` unless a packed model can be written to `folder`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PackedModelError(f"{folder} is there and not empty: name a new folder for the packed model")


def pack(model: Any, folder: Path | str) -> int:
    """Write `model` with its packed weights to the new or empty `folder`; returns the bytes of all weights.

    model: compiled with the lutra backend and called in every way that the copy is to be used, a prefill and a decode
    step for example: what these graphs read is written. Raises `PackedModelError`."""
    module, folder = module_of(model), Path(folder)
    states = list(states_of(module))
    if len(states) != 1:
        raise PackedModelError(
            f"pack takes a model that was compiled and called under one set of options of the lutra backend; "
            f"this {type(module).__name__} has {len(states)}"
        )
    check_new(folder)
    (state,) = states
    graphs = state.graphs
    for graph in graphs:
        graph.refresh()
    if any(len(graph.executables()) > 1 for graph in graphs):
        raise PackedModelError(
            "a graph of the model serves several sets of weights (regional compilation): compile the model as a whole, "
            "then pack it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    sources = [source for graph in graphs for source in graph.executable.sources]
    plain = {s.symbol for s in sources if isinstance(s, PlainWeight) and not s.symbol.startswith("constant.")}
    tensors = dict(_placed(module, state.store, plain))
    _write_plain(folder / PLAIN, module, state.store, tensors, plain)
    write_packed(folder / PACKED, sources, state.store)
    transformers_model = _save_config(module, folder)
    manifest = Manifest(
        lutra=1,
        model=type(module).__name__ if transformers_model else "",
        dtype=str(getattr(module, "dtype", torch.get_default_dtype())).removeprefix("torch."),
        recipe=state.recipe.to_yaml(),
        target=state.target.name,
        kernel_family=state.options.kernel_family,
        tensors=tensors,
        choices=[
            (rule, symbol, name, (format.bits, format.group_size, format.scheme))
            for (rule, symbol), (name, format) in state.store.choices.items()
        ],
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")  # the last: a folder with it is complete
    return sum((folder / name).stat().st_size for name in (PACKED, PLAIN))


def load_packed(folder: Path, model: nn.Module | None, options: Mapping[str, Any]) -> nn.Module:
    """The packed model of `folder`, compiled in place (`model.compile`), its weights mapped into memory.

    model: a module of the same structure, whose tensors are replaced; needed for what is not a model of Transformers.
    options: of the lutra backend, without a recipe, which is that of the folder. Raises `PackedModelError`."""
    manifest = _read_manifest(folder)
    for name in _OWN_OPTIONS:
        if name in options:
            raise OptionError(f"{folder} was packed with its own recipe: option {name!r} cannot change it any more")
    given = {"recipe": manifest.recipe, "kernel_family": manifest.kernel_family, **options}
    state = ModelState(Options.parse(given))
    if state.target.name != manifest.target:
        logger.warning(
            "%s was packed for %s, this is %s: what its kernels want in another order is packed again, in memory",
            *(folder, manifest.target, state.target.name),
        )
    restore_packed(folder / PACKED, state.store)
    state.store.choices.update(
        {(rule, symbol): (name, WeightFormat(*format)) for rule, symbol, name, format in manifest.choices}
    )
    values = _read_plain(folder / PLAIN, manifest, state.store)
    if model is None:
        model = _build(folder, manifest, values)
    _give_values(model, manifest, values, state.store, folder)
    keep_state(model, state)
    model.compile(backend="lutra", options=given)
    return model.eval()


def _placed(module: nn.Module, store: ParameterStore, plain: set[str]) -> Iterator[tuple[str, StoredTensor]]:
    """Every parameter and buffer of `module`, by name."""
    rows = {}
    for stack in plain:
        row = 0
        for part in store.parts(stack):
            rows[part] = {"rows_of": stack, "first_row": row}
            row += store.shape(part)[0]
    persistent = module.state_dict().keys()
    for name, tensor in _tensors(module):
        symbol = store.name_of(tensor)
        where: Any = "plain" if symbol is None or symbol in plain else "rows" if symbol in rows else "packed"
        place = rows[symbol] if where == "rows" and symbol is not None else {}
        dtype, shape = str(tensor.dtype).removeprefix("torch."), list(tensor.shape)
        kept = name in persistent
        yield name, StoredTensor(symbol=symbol, shape=shape, dtype=dtype, persistent=kept, where=where, **place)


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers; one that has several names under its first."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _write_plain(
    path: Path, module: nn.Module, store: ParameterStore, tensors: Mapping[str, StoredTensor], plain: set[str]
) -> None:
    chosen = {name: tensor for name, tensor in _tensors(module) if tensors[name].where == "plain"}
    chosen |= {_DERIVED + symbol: store.keep(symbol) for symbol in plain if store.original(symbol) is None}
    seen: set[int] = set()
    for name, tensor in chosen.items():
        value = tensor.detach().contiguous()
        address = value.untyped_storage().data_ptr()  # the format has no views: what shares memory is written twice
        chosen[name] = value.clone() if address in seen else value
        seen.add(address)
    save_file(chosen, path)


def _save_config(module: nn.Module, folder: Path) -> bool:
    """Write the configuration of a model of Transformers; False for any other module."""
    try:
        from transformers import PreTrainedModel
    except ImportError:
        return False
    if not isinstance(module, PreTrainedModel):
        return False
    module.config.save_pretrained(folder)
    if module.can_generate() and module.generation_config is not None:
        module.generation_config.save_pretrained(folder)
    return True


def _read_manifest(folder: Path) -> Manifest:
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise PackedModelError(
            f"{folder} holds no packed model ({MANIFEST} is missing): write one with `lutra pack MODEL -o {folder}`"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PackedModelError(f"{folder / MANIFEST}: {where}: {first['msg']}: pack the model again") from None


def _read_plain(path: Path, manifest: Manifest, store: ParameterStore) -> dict[str, torch.Tensor]:
    """A value for every tensor of the model; `store` gets the derived ones."""
    try:
        with safe_open(path, "pt") as file:
            stored = {name: file.get_tensor(name) for name in file.offset_keys()}
    except (SafetensorError, FileNotFoundError) as error:
        raise PackedModelError(f"{path} is not a complete file of weights: {error}") from None
    for name, tensor in stored.items():
        if name.startswith(_DERIVED):
            store.keep_as(name.removeprefix(_DERIVED), tensor)
    values = {}
    largest_first = sorted(manifest.tensors.items(), key=lambda item: -torch.Size(item[1].shape).numel())
    for name, tensor in largest_first:
        try:
            if tensor.where == "plain":
                values[name] = stored[name]
            elif tensor.where == "rows":
                first = tensor.first_row
                values[name] = stored[_DERIVED + tensor.rows_of][first : first + tensor.shape[0]]
            else:
                values[name] = unreadable(tensor.shape, getattr(torch, tensor.dtype))
        except KeyError as missing:
            raise PackedModelError(f"{path} has no tensor {missing}: pack the model again") from None
    return values


def _build(folder: Path, manifest: Manifest, values: Mapping[str, torch.Tensor]) -> nn.Module:
    if not manifest.model:
        raise PackedModelError(
            f"{folder} is no model of Transformers: load(folder, model) needs a module of its structure"
        )
    try:
        import transformers
    except ImportError:
        raise PackedModelError(f"{folder} is a {manifest.model}: pip install transformers") from None
    cls = getattr(transformers, manifest.model, None)
    if cls is None:
        raise PackedModelError(f"this version of Transformers has no {manifest.model}: give load(folder, model) one")
    state = {name: value for name, value in values.items() if manifest.tensors[name].persistent}
    config = transformers.AutoConfig.from_pretrained(folder)
    model = cls.from_pretrained(None, config=config, state_dict=state, dtype=getattr(torch, manifest.dtype))
    if (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return model


def _give_values(
    model: nn.Module, manifest: Manifest, values: Mapping[str, torch.Tensor], store: ParameterStore, folder: Path
) -> None:
    """Put `values` into `model`, and make its tensors known to `store` as what they were when it was packed."""
    tensors = dict(_tensors(model))
    if tensors.keys() != values.keys():
        odd = sorted(tensors.keys() ^ values.keys())
        raise PackedModelError(
            f"{folder} is of another structure than the {type(model).__name__}: {', '.join(odd[:5])}"
        )
    for name, tensor in tensors.items():
        stored, value = manifest.tensors[name], values[name]
        if tensor.shape != value.shape:
            raise PackedModelError(f"{folder}: {name} is {list(value.shape)}, the model's is {list(tensor.shape)}")
        if tensor.device.type != "cpu" or tensor.data_ptr() != value.data_ptr() or tensor.dtype != value.dtype:
            new = nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value
            torch.utils.swap_tensors(tensor, new)  # in place: tied weights stay tied
        if stored.symbol is None:
            continue
        if stored.where == "packed":
            store.bind_released(stored.symbol, tensor)
        else:
            store.bind(stored.symbol, tensor)
