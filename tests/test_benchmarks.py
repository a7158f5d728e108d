"""A smoke run of each benchmark keeps it from rotting. What it measures decides nothing here.

Those beside other libraries are in ``tests/peers``.
"""

from __future__ import annotations

import pytest

from support import benchmarks


@pytest.mark.parametrize("name", benchmarks.ALONE)
def test_a_benchmark_runs(name: str) -> None:
    """It runs to its end and closes with its figures as JSON."""
    assert benchmarks.smoke(name)["left_out"] == []
