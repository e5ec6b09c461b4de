"""A pytest plugin that writes evidence: ``pytest -p llmctl.testing.plugin --llmctl-evidence``.

For every family whose whole conformance class ran, the outcomes of its tests are written into ``evidence.json`` in the
plugin's package, which the support matrix reads. If only some of the tests ran, the file is not changed and the run fails.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from llmctl import plugins
from llmctl._version import __version__
from llmctl.plugins.hookspecs import API
from llmctl.plugins.matrix import EVIDENCE, code_hash

_outcomes: dict[str, dict[str, dict[str, str]]] = {}
_due: defaultdict[str, set[str]] = defaultdict(set)
"""Family -> tests that are evidence and have not run yet."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option that writes the files."""
    parser.addoption("--llmctl-evidence", action="store_true", help="write evidence.json of every family tested")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before deselection, notes which tests are evidence: those collected, and the rest of their classes."""
    collected = [item for item in items if _proof(item)]
    for item in collected:
        family, _ = _proof(item)
        _due[family].add(_name(item))
        names = {one.function.__name__ for one in collected if one.cls is item.cls}  # type: ignore[attr-defined]
        uncollected = {name for name in dir(item.cls) if hasattr(getattr(item.cls, name), "llmctl_proves")} - names  # type: ignore[attr-defined]
        _due[family].update(f"{item.cls.__name__}::{name}" for name in uncollected)  # type: ignore[attr-defined]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    """Keeps the outcome of a test that is evidence for a method; skipped tests do not count."""
    report = yield
    family, method = _proof(item)
    if method:
        _due[family].discard(_name(item))
        if not report.skipped and (report.when == "call" or report.failed):
            _outcomes.setdefault(family, {}).setdefault(method, {})[_name(item)] = report.outcome
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the files of the families whose tests all ran."""
    if not session.config.getoption("--llmctl-evidence"):
        return
    for family in sorted(_outcomes):
        if _due[family]:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        else:
            _write(family)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Reports which files were not written."""
    for family in sorted(_outcomes) if config.getoption("--llmctl-evidence") else ():
        if _due[family]:
            terminalreporter.write_line(
                f"evidence of {family} was not written: {len(_due[family])} of its tests did not run, such as "
                f"{min(_due[family])}; run its whole conformance class"
            )


def _proof(item: pytest.Item) -> tuple[str, str]:
    """Family and method that a test is evidence for; empty for other tests."""
    family = getattr(getattr(item, "cls", None), "family", "")
    method = getattr(getattr(item, "function", None), "llmctl_proves", "")
    return (family, method) if family and method else ("", "")


def _name(item: pytest.Item) -> str:
    return f"{item.cls.__name__}::{item.name}"  # type: ignore[attr-defined]


def _write(family: str) -> None:
    installed = plugins.load(family).installed
    file = plugins.package_folder(installed) / EVIDENCE
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    content[family] = {
        "version": installed.version,
        "api": ".".join(map(str, API)),
        "core": __version__,
        "code": code_hash(file.parent),
        "device": "cpu",
        "outcomes": {method: dict(sorted(rows.items())) for method, rows in sorted(_outcomes[family].items())},
    }
    file.write_text(json.dumps(dict(sorted(content.items())), indent=1) + "\n", encoding="utf-8")
