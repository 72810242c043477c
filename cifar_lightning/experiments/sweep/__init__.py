"""Trains many networks that differ only in values, all at once."""
