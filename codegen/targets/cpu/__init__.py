"""CPUs: an instruction set a file, and what all of them share."""
