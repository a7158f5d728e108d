"""docs/promises.md names, for each promise, what keeps it and what proves it: both must exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "promises.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| promise", "|--"))
]


def names_in(path: Path) -> set[str]:
    """Return the names of the test functions and methods in a file."""
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_what_security_names_exists() -> None:
    """Every test that docs/security.md names is there."""
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", page)
    assert len(named) > 50
    for file, name in named:
        assert name in names_in(ROOT / file), f"no {name} in {file}"


def test_every_row_names_module_and_test() -> None:
    """A row has a promise, the module that keeps it, and the test that proves it."""
    assert len(ROWS) > 50
    for row in ROWS:
        assert len(row) == 3, row
        assert all(re.search(r"`[\w/.:]+`", cell) for cell in row[1:]), row


def test_what_it_names_exists() -> None:
    """Every module and every test that the page names is there."""
    for promise, kept_by, proved_by in ROWS:
        for module in re.findall(r"`([\w/.]+)`", kept_by):
            assert (ROOT / "pgstore" / module).is_file(), f"{promise}: no pgstore/{module}"
        for file, name in re.findall(r"`([\w/.]+)::(\w+)`", proved_by):
            path = ROOT / file
            assert path.is_file(), f"{promise}: no {file}"
            assert name in names_in(path), f"{promise}: no {name} in {file}"
        assert "::" in proved_by, promise
