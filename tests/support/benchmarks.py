"""Smoke runs of the benchmarks, each in a process of its own as they are meant to be run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pgstore
from support.postgres import NEWEST, binaries

FOLDER = Path(__file__).parents[2] / "benchmarks"
WITH_PEERS = ("flask_read", "flask_write", "throughput")
ALONE = sorted({path.stem for path in FOLDER.glob("[a-z]*.py")} - {*WITH_PEERS})


def environ() -> dict[str, str]:
    """Return an environment in which a benchmark finds the package that is tested."""
    binaries(NEWEST)
    return {**os.environ, "PYTHONPATH": str(Path(pgstore.__file__).parents[1])}


def smoke(name: str) -> dict[str, Any]:
    """Run a benchmark as briefly as it can be, and return its report."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), "smoke"]
    done = subprocess.run(command, env=environ(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert report["comparisons"]
    return report
