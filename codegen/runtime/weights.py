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
    """`store.quantized(symbol)`, by the kernel where there is one for how it is computed."""
    if store.is_packed(symbol):
        weight = store.quantized(symbol)
        if tuple(weight.codes.shape) != (layout.n, layout.k) or weight.format != layout.format:
            raise PackedModelError(  # a folder may say anything of the weight; the kernels rely on it
                f"{symbol} is {list(weight.codes.shape)} in {weight.format.describe()} where the model needs "
                f"{[layout.n, layout.k]} in {layout.format.describe()}: pack the model again"
            )
        return weight
    compute, sources = store.derivation(symbol)
    if not isinstance(compute, RoundToNearest):
        return store.quantized(symbol)
    parts = [store.tensor(part) for part in store.parts(sources[0]) or sources]
    if len({part.dtype for part in parts}) > 1:
        return store.quantized(symbol)
    try:
        return round_to_nearest(parts, compute)
    except QuantizationError as error:
        raise QuantizationError(f"{sources[0]}: {error}") from None


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
