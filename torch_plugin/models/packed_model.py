"""Models on disk in packed form: what `lutra pack` writes and `lutra.load` reads, without the original checkpoint.

lutra.json              recipe, target, where each tensor of the model is, checksums (`packed_manifest.py`)
packed.safetensors      packed weights, mapped into memory (`codegen/runtime/packed_file.py`)
plain.safetensors       every other tensor that the graphs read, mapped as well
config.json, ...        what Transformers needs to build the model (`packed_config.py`)
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ...codegen.runtime.packed_file import restore_packed, write_packed
from ...codegen.runtime.weights import PlainWeight
from ...ir.errors import OptionError, PackedModelError
from ...ir.weights.formats import WeightFormat
from ...ir.weights.store import ParameterStore
from ..inspect.progress import ProgressBar
from ..inspect.report import module_of, states_of
from ..model_state import ModelState, keep_state
from ..options import Options
from ..release import unreadable
from .packed_config import empty_model, save_config
from .packed_manifest import MANIFEST, PACKED, PLAIN, Manifest, StoredTensor, first_problem, read_manifest
from .stored_files import StoredFile, check_files, size_of

logger = logging.getLogger("lutra")
_DERIVED = "derived|"
"""What precedes the symbol of a derived tensor in the file of plain ones."""
_OWN_OPTIONS = ("recipe", "vars", "calibration")


def check_new(folder: Path) -> None:
    """Raise `PackedModelError` unless a packed model can be written to `folder`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PackedModelError(f"{folder} is there and not empty: name a new folder for the packed model")


def pack(model: Any, folder: Path | str, tokenizer: Any = None) -> int:
    """Write `model` with its packed weights to the new or empty `folder`; returns the bytes of all weights.

    model: compiled with the lutra backend and called in every way that the copy is to be used, a prefill and a decode
    step for example: what these graphs read is written. tokenizer: of Transformers, saved beside it. Raises
    `PackedModelError`."""
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
    with ProgressBar(f"write {folder}", state.options.progress) as progress:
        _write(state, module, folder, tokenizer, progress.step)
    return sum((folder / name).stat().st_size for name in (PACKED, PLAIN))


def _write(state: ModelState, module: nn.Module, folder: Path, tokenizer: Any, progress: Callable[[str], None]) -> None:
    """All files of a packed folder, which is there and empty."""
    graphs = state.graphs
    sources = [source for graph in graphs for source in graph.executable.sources]
    plain = {s.symbol for s in sources if isinstance(s, PlainWeight) and not s.symbol.startswith("constant.")}
    try:
        tensors = dict(_placed(module, state.store, plain))
        progress("plain weights")
        _write_plain(folder / PLAIN, module, state.store, tensors, plain)
        progress("packed weights")
        write_packed(folder / PACKED, sources, state.store)
        saved = save_config(module, folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        progress("checksums")
        _manifest(state, module, folder, tensors, saved).write(folder)  # the last: a folder with it is complete
    except ValidationError as error:
        raise PackedModelError(f"a {type(module).__name__} cannot be packed: {first_problem(error)}") from None


def load_packed(folder: Path, model: nn.Module | None, options: Mapping[str, Any]) -> nn.Module:
    """The packed model of `folder`, compiled in place (`model.compile`), its weights mapped into memory.

    model: a module of the same structure, whose tensors are replaced; needed for what is not a model of Transformers.
    options: of the lutra backend, without a recipe, which is that of the folder. Raises `PackedModelError`."""
    manifest = read_manifest(folder)
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
    values = _read(folder, manifest, state.store)
    if model is None:
        model = empty_model(folder, manifest)
    _check_structure(model, manifest, folder)
    _give_values(model, manifest, values, state.store, folder)
    keep_state(model, state)
    model.compile(backend="lutra", options=given)
    return model.eval()


def verify(folder: Path | str) -> dict[str, int]:
    """Check all that `load` would, and give no values to any model; returns the bytes of each file that was checked.

    Raises `PackedModelError`, which names the file and what is wrong with it."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    _read(folder, manifest, ParameterStore())
    if manifest.model:
        _check_structure(empty_model(folder, manifest), manifest, folder)
    return {MANIFEST: size_of(folder / MANIFEST), **{name: file.bytes for name, file in manifest.files.items()}}


def _manifest(
    state: ModelState, module: nn.Module, folder: Path, tensors: dict[str, StoredTensor], of_transformers: bool
) -> Manifest:
    """Of what `folder` holds now."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    dtype: Any = str(getattr(module, "dtype", torch.get_default_dtype())).removeprefix("torch.")
    return Manifest(
        lutra=3,
        model=type(module).__name__ if of_transformers else "",
        dtype=dtype,
        recipe=yaml.safe_load(state.recipe.to_yaml()),
        target=state.target.name,
        kernel_family=state.options.kernel_family,
        tensors=tensors,
        choices=[
            (rule, symbol, name, (format.bits, format.group_size, format.scheme))
            for (rule, symbol), (name, format) in state.store.choices.items()
        ],
        files={path.relative_to(folder).as_posix(): StoredFile.of(path) for path in files},
    )


def _placed(module: nn.Module, store: ParameterStore, plain: set[str]) -> Iterator[tuple[str, StoredTensor]]:
    """Every parameter and buffer of `module`, by name."""
    rows = {}
    for stack in plain:
        row = 0
        for part in store.parts(stack):
            rows[part] = {"rows_of": stack, "first_row": row}
            row += store.shape(part)[0]
    for name, tensor in _tensors(module):
        symbol = store.name_of(tensor)
        where: Any = "plain" if symbol is None or symbol in plain else "rows" if symbol in rows else "packed"
        place = rows[symbol] if where == "rows" and symbol is not None else {}
        dtype: Any = str(tensor.dtype).removeprefix("torch.")
        shape = list(tensor.shape)
        yield name, StoredTensor(symbol=symbol, shape=shape, dtype=dtype, where=where, **place)


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


def _read(folder: Path, manifest: Manifest, store: ParameterStore) -> dict[str, torch.Tensor]:
    """Values of all tensors of the model but packed ones; `store` gets packed and derived ones, and the choices.

    What the manifest says is compared with the files before anything is made of it."""
    check_files(folder, manifest.files)
    restore_packed(folder / PACKED, store)
    store.choices.update(
        {(rule, symbol): (name, WeightFormat(*format)) for rule, symbol, name, format in manifest.choices_by_weight()}
    )
    most = 8 * sum(
        manifest.files[name].bytes for name in (PACKED, PLAIN)
    )  # no packed form has less than a bit a weight
    for name, tensor in manifest.tensors.items():
        if tensor.where == "packed" and math.prod(tensor.shape) > most:
            raise PackedModelError(f"{folder}: {name} cannot have shape {tensor.shape}: the files are too small for it")
    return _read_plain(folder / PLAIN, manifest, store)


def _read_plain(path: Path, manifest: Manifest, store: ParameterStore) -> dict[str, torch.Tensor]:
    """The values that are in the plain file; `store` gets the derived ones."""
    try:
        with safe_open(path, "pt") as file:
            stored = {name: file.get_tensor(name) for name in file.offset_keys()}
    except (SafetensorError, OSError) as error:
        raise PackedModelError(f"{path} is not a complete file of weights: {error}") from None
    for name, tensor in stored.items():
        if name.startswith(_DERIVED):
            store.keep_as(name.removeprefix(_DERIVED), tensor)
        elif name not in manifest.tensors:
            raise PackedModelError(f"{path}: {name!r} is no tensor of the model: pack the model again")
    values = {}
    for name, tensor in manifest.tensors.items():
        if tensor.where == "packed":
            continue
        held, first = (name, None) if tensor.where == "plain" else (_DERIVED + tensor.rows_of, tensor.first_row)
        if held not in stored:
            raise PackedModelError(f"{path} has no tensor {held!r}: pack the model again")
        value = stored[held]
        if first is not None and value.dim():
            value = value[first : first + tensor.shape[0]]
        if list(value.shape) != tensor.shape or value.dtype != tensor.torch_dtype:
            raise PackedModelError(
                f"{path}: {held!r} has {value.dtype} {list(value.shape)} where {name} is {tensor.dtype} "
                f"{tensor.shape}: pack the model again"
            )
        values[name] = value
    return values


def _check_structure(model: nn.Module, manifest: Manifest, folder: Path) -> None:
    """Raise `PackedModelError` unless `model` has the tensors of the folder, and no others."""
    tensors = dict(_tensors(model))
    if tensors.keys() != manifest.tensors.keys():
        odd = sorted(tensors.keys() ^ manifest.tensors.keys())
        raise PackedModelError(
            f"{folder} is of another structure than the {type(model).__name__}: {', '.join(odd[:5])}"
        )
    for name, tensor in tensors.items():
        shape = manifest.tensors[name].shape
        if list(tensor.shape) != shape:
            raise PackedModelError(f"{folder}: {name} is {shape}, the model's is {list(tensor.shape)}")


def _give_values(
    model: nn.Module, manifest: Manifest, values: Mapping[str, torch.Tensor], store: ParameterStore, folder: Path
) -> None:
    """Put `values` into `model`, and make its tensors known to `store` as what they were when it was packed."""
    tensors = dict(_tensors(model))
    for name in sorted(tensors, key=lambda name: -tensors[name].numel()):  # one filler serves all, if it is the largest
        stored, tensor = manifest.tensors[name], tensors[name]
        try:
            value = values[name] if name in values else unreadable(stored.shape, stored.torch_dtype)
        except RuntimeError as error:
            raise PackedModelError(f"{folder}: there is no room for {name}, {stored.shape}: {error}") from None
        if tensor.device.type != "cpu" or tensor.data_ptr() != value.data_ptr() or tensor.dtype != value.dtype:
            new = nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value
            torch.utils.swap_tensors(tensor, new)  # in place: tied weights stay tied
        if stored.symbol is None:
            continue
        if stored.where == "packed":
            store.bind_released(stored.symbol, tensor)
        else:
            store.bind(stored.symbol, tensor)
