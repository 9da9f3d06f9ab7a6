"""How each operation of the IR becomes Relax: `graph.py` walks it, `aten/` and `lutra/` hold the operations."""
