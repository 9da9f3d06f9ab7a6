"""Lowerings of torch's operators, a file a subject."""
