"""Instruction sets, a file each."""
