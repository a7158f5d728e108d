"""Adapters for frameworks; each needs its own extra."""
