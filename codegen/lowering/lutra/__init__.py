"""Lowerings of Lutra's operations, a file a subject."""
