"""Models on disk: packed folders, checkpoints that others quantised, causal language models for the command line."""
