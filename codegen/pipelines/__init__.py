"""From Relax to calls of scheduled functions, for each kind of device."""
