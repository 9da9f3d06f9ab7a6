"""Targets: what code is made for. `registry.py` knows them all, `base.py` says what one is."""
