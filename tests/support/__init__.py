"""Helpers of the tests; on `sys.path` through `pythonpath` in setup.cfg."""
