"""Recipes that ship with Lutra."""
