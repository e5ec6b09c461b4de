"""Preferences: conversations with a chosen and a rejected answer, in any format of ``llmctl.data.formats.DPO``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmctl.data.formats import DPO, SFT, TEXT, Choice, Reader, chosen_formats, columns_of
from llmctl.tokenizers.conversation import Conversation, Message


@dataclass(frozen=True, slots=True)
class Preference:
    """A conversation with two answers to it.

    Attributes:
        prompt: The conversation, whose answer is to be generated.
        chosen: The better answer.
        rejected: The other one.
        source: ``file:line``.
    """

    prompt: Conversation
    chosen: Message
    rejected: Message
    source: str

    @property
    def question(self) -> str:
        """The last user text."""
        return self.prompt.question


class PreferenceReader(Reader[Choice]):
    """Parses the preferences of lines, and counts formats and keys that are not read."""

    def __init__(self, form: str = "auto", columns: Sequence[str] = ()) -> None:
        """A reader of the table DPO.

        Args:
            form: Name of the only format, or ``auto``.
            columns: Names of keys, as ``theirs=ours``.

        Raises:
            ConfigError: A name of ``columns`` is not valid.
        """
        elsewhere = {"finetune": SFT, "data build": TEXT}
        super().__init__(chosen_formats(DPO, form), columns_of(columns), elsewhere)

    def __call__(self, text: str | None, source: str) -> Preference:
        """Parses the preference in a line; see ``Reader.read``."""
        return Preference(*self.read(text, source), source)
