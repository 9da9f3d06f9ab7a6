"""The torch.compile backend: entry point, options, capture, running a compiled graph, caches, command line."""
