"""What a model does on real inputs, as far as passes need it: statistics of every linear's input and output.

calibration = lutra.calibrate(model, batches)      # before compiling; the model runs eagerly
torch.compile(model, backend="lutra", options={"recipe": ..., "calibration": calibration})
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ..ir.errors import CalibrationError

Loss = Callable[[Any], torch.Tensor]


@dataclass
class LinearStatistics:
    """Sums over the calibration inputs of one linear layer, `[N, K]`.

    gram: `X^T X`, float32 `[K, K]`; layers with the same input share it. sensitivity: float32 `[N]`, the mean squared
    gradient of the loss in each output."""

    gram: torch.Tensor
    sensitivity: torch.Tensor
    rows: int = 0


class Calibration:
    """Statistics by weight tensor (`calibration.of(module.weight)`), for as long as the model lives.

    `fingerprint` is equal for equal inputs: it is part of the names of what is computed from the statistics."""

    def __init__(self, statistics: Mapping[torch.Tensor, LinearStatistics], fingerprint: str) -> None:
        self._statistics: Any = WeakIdKeyDictionary(statistics)
        self.fingerprint = fingerprint

    def of(self, weight: torch.Tensor | None) -> LinearStatistics | None:
        """Statistics of the layer with this weight; None when no calibration input reached it."""
        return None if weight is None else self._statistics.get(weight)

    def __len__(self) -> int:
        return len(self._statistics)

    def __repr__(self) -> str:
        return f"Calibration({len(self)} layers, {self.fingerprint})"


def calibrate(model: torch.nn.Module, batches: Iterable[Any], loss: Loss | None = None) -> Calibration:
    """Run `model` eagerly on `batches` and keep what `quantize-weights` needs to know of its linear layers.

    batches: mappings are passed as keywords, tuples and lists as arguments, anything else (a tensor of token ids) as
    the only argument. loss: output -> scalar; its gradients say how much the errors of a layer matter. By default, for
    outputs with `logits [.., V]`, the cross entropy with tokens drawn from the model's own distribution (so that mean
    squared gradients are the diagonal of the Fisher information); other outputs need one.

    Takes 4 K^2 bytes for every distinct input of K columns. Raises `CalibrationError` when no batch or no linear layer
    was seen, and when there is no loss."""
    generator = torch.Generator().manual_seed(0)
    layers = [module for module in model.modules() if _weight(module) is not None]
    statistics: dict[Any, LinearStatistics] = {}
    shared: dict[tuple[int, ...], torch.Tensor] = {}
    digest = hashlib.sha256()

    def watch(module: torch.nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        x = arguments[0].detach()
        k = x.shape[-1]
        entry = statistics.get(module)
        if entry is None:
            n = output.shape[-1]
            # Layers that are fed the same tensor in the first batch (q, k and v; gate and up) are in every batch.
            key = (id(arguments[0]), k)
            first_reader = key not in shared
            gram = shared.setdefault(key, torch.zeros(k, k))
            entry = statistics[module] = LinearStatistics(gram, torch.zeros(n))
            owners[module] = first_reader
        if owners[module]:
            flat = x.reshape(-1, k).float()
            entry.gram.addmm_(flat.T, flat)
        entry.rows += x.numel() // k
        alive.append(arguments[0])
        output = output if output.requires_grad else output.requires_grad_()
        output.register_hook(lambda gradient: _add_squares(entry.sensitivity, gradient))
        return output

    owners: dict[torch.nn.Module, bool] = {}
    alive: list[Any] = []  # a tensor that is gone would lend its id to another
    frozen = [p for p in model.parameters() if p.requires_grad]
    with ExitStack() as stack:
        for module in layers:
            stack.callback(module.register_forward_hook(watch).remove)
        for parameter in frozen:  # gradients of activations are wanted, not of weights
            parameter.requires_grad_(False)
            stack.callback(parameter.requires_grad_)
        with torch.enable_grad():
            for batch in batches:
                _add_to_digest(digest, batch)
                output = _call(model, batch)
                (loss or _own_cross_entropy(generator))(output).backward()
                alive.clear()
                shared.clear()
    if not statistics:
        raise CalibrationError("calibrate saw no linear layer: pass batches of inputs, and a model with linear layers")
    for entry in statistics.values():
        entry.sensitivity /= entry.rows
    by_weight = {weight: entry for module, entry in statistics.items() if (weight := _weight(module)) is not None}
    return Calibration(by_weight, digest.hexdigest()[:12])


def _weight(module: torch.nn.Module) -> torch.Tensor | None:
    """The weight of a linear layer: `Linear [N, K]`, or Transformers' `Conv1D [K, N]`."""
    linear = isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
    weight = getattr(module, "weight", None) if linear else None
    return weight if isinstance(weight, torch.Tensor) and weight.dim() == 2 else None


def _call(model: torch.nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def _own_cross_entropy(generator: torch.Generator) -> Loss:
    def loss(output: Any) -> torch.Tensor:
        logits = getattr(output, "logits", None)
        if logits is None:
            raise CalibrationError(
                f"the model returns {type(output).__name__}, which has no logits: "
                "pass calibrate(loss=...), a function from the output to a scalar"
            )
        flat = logits.reshape(-1, logits.shape[-1]).float()
        drawn = torch.multinomial(flat.detach().softmax(-1), 1, generator=generator)[:, 0]
        return torch.nn.functional.cross_entropy(flat, drawn, reduction="sum")

    return loss


def _add_squares(total: torch.Tensor, gradient: torch.Tensor) -> None:
    total += gradient.detach().reshape(-1, gradient.shape[-1]).float().square().sum(0)


def _add_to_digest(digest: Any, batch: Any) -> None:
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
    for value in values:
        if isinstance(value, torch.Tensor):
            digest.update(str((tuple(value.shape), value.dtype)).encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
