"""One file per instruction set: features, vector width, and the primitives that kernels are built from."""
