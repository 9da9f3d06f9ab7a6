"""FX graphs of torch as graphs of the IR."""
