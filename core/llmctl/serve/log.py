"""The server's log as JSON, a line for each event: never a prompt, an answer or a key."""

from __future__ import annotations

import json
import logging
import time

FORMATS = ("text", "json")


class JsonFormatter(logging.Formatter):
    """Writes records as JSON objects."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record: that of a request has its parts as keys."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        row = getattr(record, "row", None)
        return json.dumps(
            {"time": moment, "level": record.levelname.lower(), **(row or {"message": record.getMessage()})}
        )


def set_up(form: str, quiet: bool) -> None:
    """Sends the log to standard error.

    Args:
        form: One of ``FORMATS``.
        quiet: Whether only warnings are written.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter("%(asctime)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("llmctl.serve").setLevel(logging.WARNING if quiet else logging.INFO)
