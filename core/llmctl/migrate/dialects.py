"""The programs whose configurations are converted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmctl.migrate.dialect import Dialect
from llmctl.migrate.factory.rules import DIALECT as FACTORY
from llmctl.migrate.paddlenlp.rules import DIALECT as PADDLENLP

DIALECTS = (FACTORY, PADDLENLP)


def dialect_of(data: Mapping[str, Any]) -> Dialect | None:
    """Whose configuration it is; None = of none of them."""
    return next((dialect for dialect in DIALECTS if dialect.recognise(data)), None)
