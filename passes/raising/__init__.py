"""Patterns that recognise what models are made of: norms, rotary positions, gates, attention, ternary layers."""
