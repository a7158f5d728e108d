"""What every scenario shares: how much it does, how it measures, and how it reports.

A scenario is a module with ``run(effort) -> Report``; `main` runs it from the command line, and
prints the report as JSON on the last line.
"""

from __future__ import annotations

import io
import json
import os
import platform
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")
_K = TypeVar("_K", bound=Hashable)

EFFORTS = ("full", "quick", "smoke")

KEYS = (b"hash key of the benchmarks, 32 b.", b"block key of benchmarks, 32 byte")

# What a visitor who is signed in and has filled a cart may have: about 300 bytes in JSON.
PAYLOAD = {
    "user_id": 1742,
    "csrf_token": "v7JWm0Qy3nO2kq9dT5cXhR8uZaLfB1gEsPiYwNtMoVx",
    "cart": [
        {"sku": "TEA-0815", "title": "Darjeeling, first flush", "count": 2, "cents": 1290},
        {"sku": "POT-4711", "title": "Teapot, cast iron, 0.8 l", "count": 1, "cents": 4450},
    ],
    "language": "en",
    "n": 0,
}

_PACKAGES = (
    "psycopg",
    "psycopg-binary",
    "werkzeug",
    "flask",
    "flask-session",
    "redis",
    "sqlalchemy",
    "flask-sqlalchemy",
    "django",
    "gunicorn",
)


class Missing(Exception):
    """Something that a scenario needs is not installed; says what, in one line."""


@dataclass(frozen=True)
class Effort:
    """How much is done: ``full`` for figures to publish, ``quick`` for a look at them, ``smoke``
    to see that it runs.
    """

    name: str

    def pick(self, *, full: _T, quick: _T, smoke: _T) -> _T:
        return dict(zip(EFFORTS, (full, quick, smoke), strict=True))[self.name]


@dataclass(frozen=True)
class Spread:
    """A median, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high)


@dataclass(frozen=True)
class Comparison:
    """One line of the table. One without a target is there to be known."""

    what: str
    against: str
    measured: Spread
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool | None:
        if self.at_most is not None:
            return self.measured.median <= self.at_most
        if self.at_least is not None:
            return self.measured.median >= self.at_least
        return None

    def cells(self) -> list[str]:
        target, spread = "–", self.measured
        if self.at_most is not None:
            target = f"≤ {_number(self.at_most)}{self.unit}"
        elif self.at_least is not None:
            target = f"≥ {_number(self.at_least)}{self.unit}"
        measured = f"{_number(spread.median)}{self.unit}"
        if spread.low != spread.high:
            measured += f" ({_number(spread.low)}–{_number(spread.high)})"
        verdict = {True: "yes", False: "NO", None: "–"}[self.met]
        return [self.what, self.against, target, measured, verdict]


@dataclass
class Report:
    """What a scenario found. ``bars`` are for the plot: each a label and its spread in ``unit``."""

    title: str
    unit: str = "µs"
    comparisons: list[Comparison] = field(default_factory=list)
    bars: dict[str, Spread] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)

    def add(
        self,
        what: str,
        against: str,
        values: Sequence[float],
        unit: str = "×",
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Add a line to the table."""
        spread = Spread.of(values)
        self.comparisons.append(Comparison(what, against, spread, unit, at_most, at_least))

    def draw(self, samples: Mapping[str, Sequence[float]]) -> None:
        self.bars.update({name: Spread.of(values) for name, values in samples.items()})

    def to_json(self) -> dict[str, Any]:
        comparisons = [asdict(each) | {"met": each.met} for each in self.comparisons]
        return asdict(self) | {"comparisons": comparisons, "about": machine() | self.about}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Report:
        comparisons = []
        for each in found["comparisons"]:
            known = {key: value for key, value in each.items() if key != "met"}
            comparisons.append(Comparison(**known | {"measured": Spread(**each["measured"])}))
        bars = {name: Spread(**spread) for name, spread in found["bars"].items()}
        return cls(
            found["title"], found["unit"], comparisons, bars, found["left_out"], found["about"]
        )


def main(run: Callable[[Effort], Report]) -> None:
    """Run one scenario from the command line: ``[full|quick|smoke]``."""
    name = sys.argv[1] if len(sys.argv) > 1 else "full"
    if name not in EFFORTS:
        sys.exit(f"usage: python {sys.argv[0]} [{'|'.join(EFFORTS)}]")
    start = time.monotonic()
    report = run(Effort(name))
    print_table(report.comparisons)
    for line in report.left_out:
        print(f"left out: {line}")
    seconds = round(time.monotonic() - start, 1)
    print(json.dumps({"effort": name, "seconds": seconds} | report.to_json()))


def say(text: str) -> None:
    """Show progress."""
    print(f"  {text}", flush=True)


HEAD = ["scenario", "against", "target", "measured (quartiles)", "met"]


def print_table(comparisons: Sequence[Comparison]) -> None:
    rows = [HEAD, *(each.cells() for each in comparisons)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if comparisons else ():
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def interleave(what: Mapping[_K, Callable[[], float]], rounds: int) -> dict[_K, list[float]]:
    """Measure each in turn, round after round. The first round only warms up."""
    samples: dict[_K, list[float]] = {name: [] for name in what}
    for turn in range(rounds + 1):
        for name, measure in what.items():
            value = measure()
            if turn:
                samples[name].append(value)
    return samples


def timed(call: Callable[[], object], calls: int) -> Callable[[], float]:
    """Return what runs ``call`` so many times and gives the microseconds of one."""

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls * 1e6

    return measure


# Round by round, so that what slows a round down slows both sides of it.


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(over, under, strict=True)]


def differences(whole: Sequence[float], part: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(whole, part, strict=True)]


def environ(cookie: str | None = None) -> dict[str, Any]:
    """Return the WSGI environ of a GET request, as a server makes it."""
    made: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "localhost",
        "HTTP_USER_AGENT": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    if cookie is not None:
        made["HTTP_COOKIE"] = cookie
    return made


def machine() -> dict[str, str]:
    """Describe what this runs on and with."""
    about = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
    for package in _PACKAGES:
        try:
            about[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return about


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _number(value: float) -> str:
    if value == round(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}"
