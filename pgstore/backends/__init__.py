"""Backends: one module per storage. Each knows rows (`pgstore.rows`), and none knows another.

None is imported here, so that a store loads the driver of its own backend only.
"""
