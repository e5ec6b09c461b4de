"""Docstrings that contradict their signature, found by pydoclint; the exit status is 1 if there are any.

A docstring may leave out what the signature says, so an argument or return value without a line is fine. A line for an
argument that does not exist, a wrong order or a return section without a return value is not.

Run with: python tools/check_docstrings.py FOLDER...
"""

import re
import subprocess
import sys

OMISSIONS = {"DOC101", "DOC106", "DOC107", "DOC109", "DOC201", "DOC402"}
"""Codes for what is left out: arguments, return and yield sections, type hints (which mypy checks)."""

INVENTED = "Arguments in the docstring but not in the function signature"


def contradictions(report: str) -> list[str]:
    """The lines of a pydoclint report that are more than omissions, each with its file."""
    lines, file = [], ""
    for line in report.splitlines():
        code = re.search(r"\bDOC\d{3}\b", line)
        if not line.startswith(" "):
            file = line.strip() or file
        elif code and code[0] not in OMISSIONS and (code[0] != "DOC103" or INVENTED in line):
            lines.append(f"{file}:{line.strip()}")
    return lines


def main() -> int:
    """Checks the folders on the command line."""
    command = [sys.executable, "-m", "pydoclint.main", "--quiet", *sys.argv[1:]]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    report = run.stdout + run.stderr
    found = contradictions(report)
    if run.returncode and "DOC" not in report:
        found = [report]
    print("\n".join(found) or "docstrings agree with their signatures")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
