"""What is kept beside a library comes back as it was, by way of JSON."""

import json

from lutra.codegen.kernels.cpu.packing import PackedLayout
from lutra.codegen.runtime.manifest import (
    VERSION,
    Chosen,
    LiteralOutput,
    Manifest,
    SizeOutput,
    TensorOutput,
    UpdatedInput,
)
from lutra.codegen.runtime.torch_calls import TorchCall
from lutra.codegen.runtime.weights import PackedWeight, PlainWeight
from lutra.codegen.runtime.workspace import View, Workspace
from lutra.codegen.select import Reason
from lutra.ir.weights.formats import WeightFormat

CHOSEN = Chosen(
    "linear s4g64, 1 row of float32",
    "packed dot",
    3,
    slower=(("packed lookup", Reason("it is slower", "2 to 1")), ("gemm of lookup", Reason("it is slower", "3 to 1"))),
    unable=(("dense", "its weight is quantised"),),
    weights=("a", "b"),
)


def test_a_manifest_is_read_as_it_was_written():
    layout = PackedLayout("dot", WeightFormat(4, 64), 64, 128, "row")
    manifest = Manifest(
        weights=(PlainWeight("norm", "uint16"), PackedWeight("a", layout, 1)),
        outputs=(TensorOutput(1), SizeOutput(0), LiteralOutput(None), LiteralOutput(2.5), UpdatedInput(3)),
        kernels={"dot_s4g64": 3},
        fallbacks=(TorchCall("aten.tanh", "it has no lowering", "layers.0", "model.py:3"),),
        chosen=(CHOSEN,),
        workspace=Workspace(64, (View(0, (2, 3), "float32"),)),
    )
    data = json.loads(json.dumps(manifest.to_data()))
    assert data["version"] == VERSION
    assert Manifest.from_data(data) == manifest


def test_in_brief_equal_reasons_stand_together_and_what_is_unable_is_left_out():
    assert CHOSEN.brief() == [
        "linear s4g64, 1 row of float32: packed dot",
        "not packed lookup, gemm of lookup: it is slower",
    ]
