"""Compiled code on disk: entries that vouch for themselves, executables by content."""
