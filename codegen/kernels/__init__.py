"""Hand-written TIR kernel templates, specialised by Python closures."""
