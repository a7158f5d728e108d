"""A smoke run of each benchmark keeps it from rotting. What it measures decides nothing here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pgstore
from support.postgres import NEWEST, binaries

BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("[a-z]*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_runs(path: Path) -> None:
    """It runs to its end and closes with its figures as JSON."""
    binaries(NEWEST)
    environ = {**os.environ, "PYTHONPATH": str(Path(pgstore.__file__).parents[1])}
    command = [sys.executable, str(path), "smoke"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["left_out"] == []
    assert report["comparisons"]
