"""MLIR to Relax and TIR to an executable: lowerings, kernels, targets, cache."""
