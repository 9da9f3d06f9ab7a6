"""Merging of operations."""
