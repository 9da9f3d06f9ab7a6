"""Where the weights of an executable come from: a plain tensor of the parameter store, or one buffer of a packed
weight."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ...ir.errors import PackedModelError, QuantizationError
from ...ir.weights.formats import QuantizedWeight, WeightFormat
from ...ir.weights.rounding import RoundToNearest
from ...ir.weights.store import ParameterStore
from ..device import ALIGNMENT
from ..kernels.cpu.packing import PackedLayout
from ..kernels.cpu.rounding import round_to_nearest


@dataclass(frozen=True)
class PlainWeight:
    """The tensor `symbol`, read as `view` (a dtype name of the same width) when given."""

    symbol: str
    view: str | None = None

    def resolve(self, store: ParameterStore) -> torch.Tensor:
        """The tensor, contiguous; a small one that is not aligned is copied. Large ones have kernels that do not need
        alignment."""
        tensor = store.keep(self.symbol).detach().contiguous()
        if tensor.data_ptr() % ALIGNMENT and tensor.numel() * tensor.element_size() < 1 << 20:
            tensor = tensor.clone()
        return tensor if self.view is None else tensor.view(getattr(torch, self.view))


@dataclass(frozen=True)
class PackedWeight:
    """Buffer number `part` of quantised weight `symbol` in `layout`."""

    symbol: str
    layout: PackedLayout
    part: int

    def resolve(self, store: ParameterStore) -> torch.Tensor:
        """The buffer; the weight is quantised and packed when this is the first graph that asks."""
        layout = self.layout
        buffers = store.packed(
            self.symbol, layout.key, lambda: layout.pack(_quantized(store, self.symbol, layout)), layout.unpack
        )
        return buffers[self.part]


def _quantized(store: ParameterStore, symbol: str, layout: PackedLayout) -> QuantizedWeight:
    """`store.quantized(symbol)`; of a merged weight a part at a time, each into its rows."""
    parts = () if store.is_packed(symbol) else store.parts(symbol)
    if not parts and _rounding(store, symbol) is None:
        return _computed(store, symbol, layout.n, layout)
    whole, first = QuantizedWeight.empty(layout.n, layout.k, layout.format), 0
    for part in parts or (symbol,):
        rows = whole.rows(first, layout.n)
        if (rounding := _rounding(store, part)) is None:
            weight = _computed(store, part, None, layout)
            rows.rows(0, len(weight.codes)).copy_(weight)
            first += len(weight.codes)
        else:
            first += _round_into(rows, store, *rounding)
    return whole


def _rounding(store: ParameterStore, symbol: str) -> tuple[RoundToNearest, str] | None:
    """The rule of `symbol` and what it is applied to, if there is a kernel for it and it is still to be applied."""
    derived = None if store.is_packed(symbol) else store.derivation(symbol)
    if derived is None or not isinstance(derived.derivation, RoundToNearest):
        return None
    return derived.derivation, derived.sources[0]


def _round_into(rows: QuantizedWeight, store: ParameterStore, rule: RoundToNearest, source: str) -> int:
    """Round the weight `source` into the first of `rows`; how many it has."""
    weight = store.tensor(source)
    try:
        round_to_nearest(weight, rule, rows.rows(0, len(weight)))
    except QuantizationError as error:
        raise QuantizationError(f"{source}: {error}") from None
    return len(weight)


def _computed(store: ParameterStore, symbol: str, n: int | None, layout: PackedLayout) -> QuantizedWeight:
    """`store.quantized(symbol)`; raises `PackedModelError` unless it has `n` rows (None: any number of them) and else
    the form of `layout`: a folder may say anything of it, and the kernels rely on it."""
    weight = store.quantized(symbol)
    rows, k = weight.codes.shape
    if (n is not None and rows != n) or k != layout.k or weight.format != layout.format:
        raise PackedModelError(
            f"{symbol} is {[rows, k]} in {weight.format.describe()} where the model needs "
            f"{[layout.n if n is None else n, layout.k]} in {layout.format.describe()}: pack the model again"
        )
    return weight


WeightSource = PlainWeight | PackedWeight


def to_data(source: WeightSource) -> dict[str, Any]:
    """JSON form, for the manifest of a cached executable."""
    return {"kind": type(source).__name__, **asdict(source)}


def from_data(data: dict[str, Any]) -> WeightSource:
    """The inverse of `to_data`."""
    fields = {key: value for key, value in data.items() if key != "kind"}
    if data["kind"] == PlainWeight.__name__:
        return PlainWeight(**fields)
    layout = fields.pop("layout")
    return PackedWeight(layout=PackedLayout(**{**layout, "format": WeightFormat(**layout["format"])}), **fields)
