"""Options that had other names before, which go on and are not shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import click


class Renamed(click.Option):
    """An option with former names.

    Args:
        declarations: As for ``click.Option``.
        former: The former names.
        **given: As for ``click.Option``.
    """

    def __init__(self, declarations: Sequence[str], *, former: Sequence[str], **given: Any) -> None:
        super().__init__([*declarations, *former], **given)
        self.former = frozenset(former)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option in the help of its command."""
        with self._named():
            return super().get_help_record(ctx)

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """The option in messages."""
        with self._named():
            return super().get_error_hint(ctx)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Without its former names while the block is entered."""
        opts = self.opts
        self.opts = [name for name in opts if name not in self.former]
        try:
            yield
        finally:
            self.opts = opts
