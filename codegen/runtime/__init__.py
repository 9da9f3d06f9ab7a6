"""What runs: executables, their memory and weights, threads, calls back into torch."""
