"""`import pgstore` beside `import psycopg`, each in a new process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from _common import Effort, Report, interleave, main, ratios

_CODE = """
import sys, time
start = time.perf_counter()
import {module}
print((time.perf_counter() - start) * 1e3, "psycopg" in sys.modules)
"""


def run(effort: Effort) -> Report:
    report = Report("Import", "ms")
    rounds = effort.pick(full=50, quick=8, smoke=1)
    times = interleave({name: _importing(name) for name in ("pgstore", "psycopg")}, rounds)
    report.draw({f"import {name}": values for name, values in times.items()})
    report.add(
        "import pgstore", "import psycopg", ratios(times["pgstore"], times["psycopg"]), at_most=0.8
    )
    return report


def _importing(module: str) -> Callable[[], float]:
    def measure() -> float:
        command = [sys.executable, "-P", "-c", _CODE.format(module=module)]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert shown[1] == str(module == "psycopg"), "pgstore alone imports no psycopg"
        return float(shown[0])

    return measure


if __name__ == "__main__":
    main(run)
