"""Kernels of the CPU, as TIR templates over what an instruction set can do."""
