"""Adapters that put a store into a framework. Each imports its framework; nothing imports them."""
