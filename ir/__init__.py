"""The IR: MLIR context, the `lutra` dialect, FX import, parameters, symbolic shapes, interpreter, printing."""
