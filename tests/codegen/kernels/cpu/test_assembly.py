"""The instructions that each ISA is about are the ones that the compiler chose, also for ISAs that this machine
lacks."""

import re

import pytest
import tvm
from lutra.codegen.kernels.cpu.lowbit_gemm import low_bit_gemm
from lutra.codegen.kernels.cpu.lowbit_linear import low_bit_linear
from lutra.codegen.kernels.cpu.packing import PackedLayout
from lutra.codegen.kernels.cpu.tile_gemm import tile_gemm
from lutra.codegen.targets.cpu.isas import ISAS
from lutra.ir.weights.formats import WeightFormat

EXPECTED = {
    ("avx512", "lookup", 2): {"vpermb", "vpdpbusd"},
    ("avx512", "dot", 4): {"vpdpbusd"},
    ("avx2", "lookup", 2): {"vpshufb"},
    ("avx2", "dot", 4): {"vpmaddubsw", "vpmaddwd"},
    ("avx2", "triples", 2): {"vpshufb", "vpsignb"},
    ("avx512", "triples", 2): {"vpermb", "vptestmb", "vpsubb", "vpdpbusd"},
    ("neon", "lookup", 2): {"tbl"},
    ("neon", "triples", 2): {"tbl"},
    ("neon", "dot", 4): {"sdot"},
    ("neon", "dot", 8): {"sdot"},
}


GEMM = {
    ("amx", "dot", 4): {"ldtilecfg", "sttilecfg", "tdpbsud"},
    ("amx", "lookup", 2): {"tdpbsud", "vgf2p8affineqb"},
    ("avx512", "lookup", 1): {"vpdpbusd", "vgf2p8affineqb"},
    ("avx2", "dot", 4): {"vpmaddubsw"},
    ("neon", "dot", 4): {"sdot"},
}


@pytest.mark.parametrize(("name", "family", "bits"), GEMM)
def test_cross_compiled_matrix_products_use_the_instructions_of_their_target(name, family, bits):
    isa = ISAS[name]
    layout = PackedLayout.create(family, WeightFormat(bits, 64), 128, 256, isa)
    product = tile_gemm if isa.multiplies_tiles else low_bit_gemm
    module = tvm.compile(product(layout, isa, "float32"), target=isa.tvm_target(cross=True))
    text = module.mod.inspect_source("asm")
    assert not {i for i in GEMM[name, family, bits] if not re.search(rf"\b{i}\b", text)}


def assembly(name: str, family: str, bits: int, cross: bool) -> str:
    isa = ISAS[name]
    format = WeightFormat(2, 128, "ternary") if family == "triples" else WeightFormat(bits, 64)
    layout = PackedLayout.create(family, format, 128, 256, isa)
    module = tvm.compile(low_bit_linear(layout, isa, 1, "float32"), target=isa.tvm_target(cross=cross))
    return module.mod.inspect_source("asm")


@pytest.mark.parametrize(("name", "family", "bits"), EXPECTED)
def test_cross_compiled_kernels_use_the_instructions_of_their_target(name, family, bits):
    text = assembly(name, family, bits, cross=True)
    missing = {i for i in EXPECTED[name, family, bits] if not re.search(rf"\b{i}\b", text)}
    assert not missing
    assert name == "avx512" or "zmm" not in text


@pytest.mark.parametrize("name", ["avx2", "portable"])
@pytest.mark.parametrize("family", ["lookup", "triples", "dot"])
def test_restricted_targets_stay_within_their_isa_on_this_machine(name, family):
    if not ISAS[name].available():
        pytest.skip(f"{name} is not present")
    text = assembly(name, family, 2, cross=False)
    assert "zmm" not in text
    assert name == "avx2" or "ymm" not in text
    assert "%k1" not in text


def test_accumulators_are_registers():
    """No workspace of TVM's in the kernel: a buffer that LLVM cannot promote costs a store for every product."""
    for family, bits in (("lookup", 2), ("dot", 4)):
        assert "TVMBackendAllocWorkspace" not in assembly("avx512", family, bits, cross=True)
