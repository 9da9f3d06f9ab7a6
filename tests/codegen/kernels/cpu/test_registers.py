"""Fields of bytes, against arithmetic on integers."""

import torch
import tvm
from lutra.codegen.kernels.cpu.function import kernel
from lutra.codegen.kernels.cpu.registers import field
from tvm.script.ir_builder import tirx as T

BYTES = 256


def test_a_field_of_every_byte_goes_to_its_place_and_leaves_zeros(isa):
    fields = [(shift, bits, place) for bits in range(1, 9) for shift in range(9 - bits) for place in range(9 - bits)]
    x = torch.randperm(BYTES).byte()  # every byte, beside other neighbours each time

    def body(source, out):
        for number, (shift, bits, place) in enumerate(fields):
            for first in range(0, BYTES, 64):
                at = T.ramp(first, 1, 64)
                T.buffer_store(out, field(source[at], shift, bits, place), [number, at])

    out = torch.empty(len(fields), BYTES, dtype=torch.uint8)
    shapes = [((BYTES,), "uint8"), ((len(fields), BYTES), "uint8")]
    tvm.compile(kernel(shapes, body), target=isa.tvm_target())["main"](x, out)
    for found, (shift, bits, place) in zip(out, fields, strict=True):
        assert torch.equal(found, (x >> shift & 2**bits - 1) << place)
