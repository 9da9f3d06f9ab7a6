"""Rewrite passes: one technique a file, MLIR in, MLIR out."""
