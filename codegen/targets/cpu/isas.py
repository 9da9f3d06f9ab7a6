"""All instruction sets, the most capable first."""

from .amx import AMX
from .avx2 import AVX2
from .avx512 import AVX512
from .isa import VectorIsa
from .neon import NEON
from .portable import PORTABLE

ISAS: dict[str, VectorIsa] = {isa.name: isa for isa in (AMX, AVX512, AVX2, NEON, PORTABLE)}
