"""Fine-tuning examples: conversations to train on, in any format of ``llmctl.data.formats.SFT``."""

from __future__ import annotations

from collections.abc import Sequence

from llmctl.data.formats import DPO, SFT, TEXT, Reader, chosen_formats, columns_of
from llmctl.tokenizers.conversation import Conversation, messages_of


class Example:
    """A conversation to train on, and its source (``file:line``).

    Args:
        src: User texts of the turns.
        tgt: Answer to each.
        system: System prompt, if any.
        source: Where it comes from.
    """

    __slots__ = ("_messages", "_tools", "_variables", "source")

    def __init__(self, src: Sequence[str], tgt: Sequence[str], system: str | None = None, source: str = ""):
        self._messages, self._tools, self._variables = messages_of(zip(src, tgt, strict=True), system), (), None
        self.source = source

    @classmethod
    def of(cls, chat: Conversation, source: str) -> Example:
        """The example of a conversation, which ends with an answer."""
        example = cls((), (), source=source)
        example._messages, example._tools, example._variables = chat.messages, chat.tools, chat.variables or None
        return example

    @property
    def conversation(self) -> Conversation:
        """The conversation, with all answers."""
        return Conversation(messages=self._messages, tools=self._tools, variables=self._variables)

    @property
    def question(self) -> str:
        """The last user text."""
        return self.conversation.question


class ExampleReader(Reader[Conversation]):
    """Parses the examples of lines, and counts formats and keys that are not read."""

    def __init__(self, form: str = "auto", columns: Sequence[str] = (), option: str = "data.columns") -> None:
        """A reader of the table SFT.

        Args:
            form: Name of the only format, or ``auto``.
            columns: Names of keys, as ``theirs=ours``.
            option: Where these were given, for messages.

        Raises:
            ConfigError: A name of ``columns`` is not valid.
        """
        elsewhere = {"dpo": DPO, "data build": TEXT}
        super().__init__(chosen_formats(SFT, form), columns_of(columns, option), elsewhere)

    def __call__(self, text: str | None, source: str) -> Example:
        """Parses the example in a line; see ``Reader.read``."""
        return Example.of(self.read(text, source), source)
