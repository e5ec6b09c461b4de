"""Records the goldens of the families here: the cases of ``golden_cases.py``, with ``llmctl.testing.record``.

``python tools/goldens/make_golden.py FAMILY`` writes them beside the family's tests. It needs torch and transformers, which nothing
else here does; docs/goldens.md says which versions, and where the modeling files come from of families that are not in
transformers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "core"))

from golden_cases import CASES, PLUGINS  # noqa: E402

from llmctl.testing.case import Case  # noqa: E402
from llmctl.testing.record import report  # noqa: E402


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    families = sorted({case.family for case in CASES})
    parser.add_argument("family", choices=[*families, "all"], help="all = those whose code is in transformers")
    parser.add_argument("--case", choices=[case.name for case in CASES], help="only this one")
    parser.add_argument("--code", type=Path, help="a downloaded model repository with the authors' modeling_*.py")
    parser.add_argument("--out", type=Path, help="write CASE here; default: the tests of the family's plugin")
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace) -> list[Case]:
    """The cases that the options name."""
    named = [case for case in CASES if options.family in (case.family, "all") and options.case in (case.name, None)]
    return [case for case in named if case.file == "" or options.family != "all"]


def folder_of(case: Case, out: Path | None = None) -> Path:
    """Where a case is written."""
    return (out or ROOT / "plugins" / PLUGINS.get(case.family, case.family) / "tests" / "goldens") / case.name


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = parse(arguments)
    for case in chosen(options) or sys.exit(f"{options.family} has no case {options.case}"):
        report(case, folder_of(case, options.out), options.code)


if __name__ == "__main__":
    main()
