"""A table at the end of a test run: how many tests of a contract passed on which backend."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from typing import Any

import pytest


class ContractReport:
    """A plugin. A class of tests says in ``on`` what its backend is called; its name otherwise."""

    def __init__(self) -> None:
        # By contract and backend: what became of each test, as it is to be read.
        self._outcomes: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, Any, Any]:
        report = yield
        if isinstance(item, pytest.Function) and item.cls is not None:
            name, passed = _contract_of(item.cls, item.originalname)
            if name:
                # Plain values: they cross to the process that reports.
                backend = getattr(item.cls, "on", item.cls.__name__)
                report.contract = [name, backend, item.name, passed]
        return report

    def pytest_runtest_logreport(self, report: Any) -> None:
        if not hasattr(report, "contract"):
            return
        contract, backend, test, passed = report.contract
        tests = self._outcomes[contract].setdefault(backend, {})
        if report.skipped:
            tests[test] = f"skipped ({report.longrepr[2].removeprefix('Skipped: ')})"
        elif report.failed:
            tests[test] = "failed"
        else:
            tests.setdefault(test, passed)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for contract, backends in self._outcomes.items():
            terminalreporter.section(f"contract of {contract} backends")
            every = {test for tests in backends.values() for test in tests}
            width = max(map(len, backends))
            for backend, tests in backends.items():
                passed = sum(outcome.startswith("passed") for outcome in tests.values())
                terminalreporter.line(f"{backend:{width}}  {passed:3} of {len(every)} passed")
                others: dict[str, list[str]] = defaultdict(list)
                for test in sorted(every):
                    others[tests.get(test, "not run")].append(test)
                others.pop("passed", None)
                for outcome, names in others.items():
                    terminalreporter.line(f"    {outcome}: {', '.join(names)}")


def _contract_of(kind: type, test: str) -> tuple[str, str]:
    """Return the contract that a test is of, and what is said of it when it passes."""
    # Not at import: pytest must have been told to rewrite its assertions.
    from pgstore.testing import BackendContract, TokenContract

    for name, contract in (("session", BackendContract), ("token", TokenContract)):
        # Not what a class has besides.
        if issubclass(kind, contract) and hasattr(contract, test):
            is_same = getattr(kind, test) is getattr(contract, test)
            return name, "passed" if is_same else "passed in a form of its own"
    return "", ""
