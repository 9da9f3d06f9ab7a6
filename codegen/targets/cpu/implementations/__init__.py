"""How a CPU computes the problems of `codegen/select.py`: kernels over its instruction set, or torch's library."""
