"""Low-bit weights: the pass, and the rules that turn a weight into codes."""
