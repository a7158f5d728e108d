"""The benchmarks that take other libraries and their servers (pgstore[bench])."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support.benchmarks import FOLDER, WITH_PEERS, environ


def test_benchmarks_run_beside_other_libraries(tmp_path: Path) -> None:
    """All of them run to their end, and write table, figures and plots.

    What is not installed is left out and said; in CI nothing is.
    """
    command = [sys.executable, str(FOLDER), "smoke", "--output", str(tmp_path), "--only"]
    done = subprocess.run(
        [*command, *WITH_PEERS], env=environ(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    figures = json.loads((tmp_path / "benchmarks.json").read_text())
    assert sorted(figures) == sorted(WITH_PEERS)
    page = (tmp_path / "benchmarks.md").read_text()
    for name, report in figures.items():
        assert not report["left_out"] or not os.environ.get("CI"), report["left_out"]
        if report["bars"]:
            assert (tmp_path / "images" / f"bench-{name.replace('_', '-')}.svg").exists()
        for comparison in report["comparisons"]:
            assert f"| {comparison['what']} | {comparison['against']} |" in page
