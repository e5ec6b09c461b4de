"""A plugin of pytest that writes evidence: ``pytest -p llmctl.testing.plugin --llmctl-evidence``.

For every family whose conformance class ran, the outcomes of its tests go into ``evidence.json`` in the plugin's
package, where the support matrix finds them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from llmctl import plugins
from llmctl._version import __version__
from llmctl.hookspecs import API
from llmctl.matrix import EVIDENCE, code_hash

_outcomes: dict[str, dict[str, dict[str, str]]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option that asks for the files."""
    parser.addoption("--llmctl-evidence", action="store_true", help="write evidence.json of every family tested")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    """Keeps the outcome of a test that is evidence for a method; one that was skipped is none."""
    report = yield
    method = getattr(getattr(item, "function", None), "llmctl_proves", "")
    family = getattr(getattr(item, "cls", None), "family", "")
    if method and family and not report.skipped and (report.when == "call" or report.failed):
        test = f"{item.cls.__name__}::{item.name}"  # type: ignore[attr-defined]
        _outcomes.setdefault(family, {}).setdefault(method, {})[test] = report.outcome
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the files."""
    if not session.config.getoption("--llmctl-evidence"):
        return
    for family in sorted(_outcomes):
        found = plugins.load(family).found
        file = plugins.package_folder(found) / EVIDENCE
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        content[family] = {
            "version": found.version,
            "api": ".".join(map(str, API)),
            "core": __version__,
            "code": code_hash(file.parent),
            "device": "cpu",
            "outcomes": {method: dict(sorted(rows.items())) for method, rows in sorted(_outcomes[family].items())},
        }
        file.write_text(json.dumps(dict(sorted(content.items())), indent=1) + "\n", encoding="utf-8")
