"""A CPU with one instruction set as a target."""

from collections.abc import Mapping
from dataclasses import dataclass

import tvm
from tvm.target.codegen import llvm_cpu_has_features

from ....ir.errors import LoweringError
from ...device import Device
from ...kernels.cpu.scratch_product import register
from ...pipelines.cpu import cpu_pipeline
from ...select import Implementation
from ..base import Target
from . import memory
from .implementations.attention import DecodeAttention, LibraryAttention
from .implementations.dense import DenseKernel, LibraryProduct
from .implementations.grouped import GroupedProduct
from .implementations.low_bit import AmxProduct, PackedProduct, TileProduct, UnpackedProduct
from .isa import VectorIsa
from .launcher import OpenMp

CPU = Device("cpu", tvm.cpu(), memory.empty, register)


@dataclass(frozen=True, eq=False)
class CpuTarget(Target):
    """What has `isa`."""

    isa: VectorIsa

    @staticmethod
    def of(isa: VectorIsa) -> "CpuTarget":
        """The target that is called as `isa` is."""
        return CpuTarget(isa.name, CPU, cpu_pipeline, OpenMp(), _implementations(isa), isa)

    @property
    def features(self) -> tuple[str, ...]:
        return self.isa.features

    @property
    def fingerprint(self) -> str:
        products = ", ".join(f"{dtype}: {self.isa.product_dtype(dtype)}" for dtype in ("bfloat16", "float16"))
        return f"{self.name} {self.tvm_target()}, products in {products}"

    def available(self) -> bool:
        return self.isa.available()

    def tvm_target(self, cross: bool = False) -> tvm.target.Target:
        return self.isa.tvm_target(cross)

    def check(self) -> None:
        # LLVM ends the process at an instruction that it does not know the processor to have, so it is asked before.
        missing = [name for name in self.features if not llvm_cpu_has_features([name], self.tvm_target())]
        if missing:
            raise LoweringError(
                f"target {self.name!r} needs {', '.join(missing)}, which LLVM does not see in {self.tvm_target()}"
            )


def _implementations(isa: VectorIsa) -> Mapping[str, tuple[Implementation, ...]]:
    families = ("triples", "lookup", "dot")
    units = (AmxProduct,) if isa.multiplies_tiles else ()
    return {
        "linear": (
            DenseKernel(),
            LibraryProduct(isa=isa),
            *(PackedProduct(isa=isa, family=family, form=family) for family in families),
            PackedProduct(isa=isa, family="dot", form="float"),
            *(product(isa=isa, family=family) for product in (*units, TileProduct) for family in families),
            UnpackedProduct(isa=isa),
        ),
        "grouped_linear": (
            *(GroupedProduct(isa=isa, family=family, form=family) for family in families),
            GroupedProduct(isa=isa, family="dot", form="float"),
            *(GroupedProduct(isa=isa, family=family, form=family, unpacked=True) for family in families),
        ),
        "attention": (DecodeAttention(), LibraryAttention()),
    }
