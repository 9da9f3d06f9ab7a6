"""Parameters and what is derived from them: formats of low-bit weights, named computations, one store of all."""
