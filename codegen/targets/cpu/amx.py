"""x86 with AMX beside AVX-512 (Sapphire Rapids and later): a unit that multiplies tiles of 16 rows of 64 bytes."""

from typing import Any

import torch

from .avx512 import AVX512, Avx512


class Amx(Avx512):
    """The kernels of AVX-512 but for matrix products (`kernels/cpu/tile_gemm.py`)."""

    def available(self) -> bool:
        # Linux wants to be asked before a process uses tiles; torch knows how.
        return super().available() and torch.cpu._init_amx()

    def native(self) -> dict[str, Any]:
        return {**super().native(), "mattr": ["+amx-tile", "+amx-int8"]}


AMX = Amx(
    name="amx",
    architectures=AVX512.architectures,
    features=(*AVX512.features, "amx-tile", "amx-int8"),
    vector_bits=AVX512.vector_bits,
    slot_order=AVX512.slot_order,
    multiplies_tiles=True,
    half_products=AVX512.half_products,
    cross={"mtriple": "x86_64-linux-gnu", "mcpu": "sapphirerapids"},
    prefers=AVX512.prefers,
)
