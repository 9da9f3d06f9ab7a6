"""How each operation of the IR becomes Relax."""
