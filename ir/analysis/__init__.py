"""What is known of a graph without running it: sizes and shapes, axes, layers, who owns which memory, what it costs."""
