"""Measuring speed and quality of compiled models."""
