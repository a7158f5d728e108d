"""Run the scenarios one after the other, each in a process of its own: ``python benchmarks``.

The table, the figures as JSON and a plot of each go into ``benchmarks/results/``. With ``--output
docs`` they replace those of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _common import EFFORTS, HEAD, Report, print_table
from _plot import plot

_HERE = Path(__file__).parent
_BEGIN, _END = "<!-- results: begin -->\n", "<!-- results: end -->\n"

_SCENARIOS = (
    "get",
    "save",
    "flask_read",
    "flask_write",
    "throughput",
    "large_table",
    "measures",
    "sweep",
    "import_time",
    "sqlite_overhead",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks")
    parser.add_argument("effort", nargs="?", default="full", choices=EFFORTS)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=_SCENARIOS)
    parser.add_argument("--output", type=Path, metavar="FOLDER", default=_HERE / "results")
    arguments = parser.parse_args()
    start = time.monotonic()
    found, failed = {}, []
    for name in arguments.only or _SCENARIOS:
        print(name, flush=True)
        result = _run(name, arguments.effort)
        if result is None:
            failed.append(name)
        else:
            found[name] = result
    reports = {name: Report.from_json(result) for name, result in found.items()}
    print()
    print_table([each for report in reports.values() for each in report.comparisons])
    for name, report in reports.items():
        for line in report.left_out:
            print(f"left out of {name}: {line}")
    for name in failed:
        print(f"FAILED: {name}")
    _write(found, reports, arguments.output)
    print(f"{time.monotonic() - start:.0f} s in all")
    sys.exit(1 if failed else 0)


def _run(name: str, effort: str) -> dict[str, Any] | None:
    """Run a scenario and show its progress; return its report, or None when it failed."""
    command = [sys.executable, str(_HERE / f"{name}.py"), effort]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if not line.startswith("{"):
                print(line, end="", flush=True)
            last = line
    if process.returncode:
        return None
    result: dict[str, Any] = json.loads(last)
    print(f"  {result['seconds']} s", flush=True)
    return result


def _write(found: dict[str, Any], reports: dict[str, Report], folder: Path) -> None:
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name, report in reports.items():
        if report.bars:
            plot(report, images / f"bench-{name.replace('_', '-')}.svg")
    (folder / "benchmarks.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    page = folder / "benchmarks.md"
    text = page.read_text("utf-8") if page.exists() else _BEGIN + _END
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2]
    page.write_text(before + _BEGIN + _markdown(reports) + _END + after, "utf-8")
    print(f"the results are in {folder}")


def _markdown(reports: dict[str, Report]) -> str:
    rows = [HEAD, ["---"] * len(HEAD)]
    rows += [each.cells() for report in reports.values() for each in report.comparisons]
    about: dict[str, str] = {}
    for report in reports.values():
        about |= report.about
    versions = ", ".join(f"{name} {value}" for name, value in about.items())
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"Measured with {versions}.", "", *lines]) + "\n"


if __name__ == "__main__":
    main()
