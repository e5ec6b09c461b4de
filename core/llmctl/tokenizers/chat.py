"""Chat templates: how a conversation becomes token ids, in training and in generation alike.

Two kinds exist: Hugging Face's jinja text over a list of messages, and PaddleNLP's ``chat_template.json``. Both are
reduced to one question, the text up to and including a turn; everything else is shared. Rendering is sandboxed: a
template comes with a checkpoint and is not trusted. The name of a special token in a user's text stays text.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.errors import TokenizerError
from llmctl.io.json_object import read_json, write_json
from llmctl.io.text import read_text
from llmctl.tokenizers import protect, sandbox
from llmctl.tokenizers.base import ChatTemplate, Piece, Tokenizer
from llmctl.tokenizers.conversation import THOUGHTS, Conversation
from llmctl.tokenizers.sandbox import CLOSE, OPEN
from llmctl.tokenizers.special import CONFIG, TEMPLATE_KEY

if TYPE_CHECKING:
    from llmctl.card.family import Family
    from llmctl.card.tokens import Wording

JINJA_FILE, JSON_FILE = "chat_template.jinja", "chat_template.json"
TOOL_USE, MORE_TEMPLATES = "tool_use", "additional_chat_templates"
"""Name of the template of conversations with tools, and folder of templates beside ``chat_template.jinja``."""

CALLS_LOST = (
    "the chat template does not write tool calls, which would be lost; choose a template that does with data.chat_template or "
    "--chat-template, or leave them out"
)


class JinjaTemplate(ChatTemplate):
    """Hugging Face's kind: jinja over ``messages``, with the variables that transformers gives.

    Templates of cards may also ask which names are in ``special_tokens``.

    Args:
        source: The template.
        tokenizer: The tokenizer.
        where: Its file, for messages.
        tool_use: The template of conversations with tools, if another; transformers calls it so.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, where: str, tool_use: str | None = None):
        super().__init__(tokenizer)
        self.source, self.tool_use = source, tool_use
        self._where = where
        self._template = sandbox.compile_template(source, where)
        self._tool_use = JinjaTemplate(tool_use, tokenizer, where) if tool_use else None

    def text(self, conversation: Conversation) -> str:
        """The rendered messages.

        Raises:
            TokenizerError: The template fails, or does not write the calls of tools.
        """
        return self._for(conversation)._render(False, conversation, self.now)

    def _for(self, conversation: Conversation) -> JinjaTemplate:
        """The template of a conversation; what it never writes is named."""
        chosen = self._tool_use if self._tool_use and conversation.tools else self
        has = {key for message in conversation.messages for key in message.more or ()}
        if "tool_calls" in has and not chosen._reads("tool_calls"):
            raise TokenizerError(f"{self._where}: {CALLS_LOST}")
        lost = {
            "tools": bool(conversation.tools) and not chosen._reads("tools"),
            "reasoning_content": "reasoning_content" in has and not any(map(chosen._reads, THOUGHTS[:2])),
            **{name: not self.reads(name) for name in conversation.variables},
        }
        for key, is_lost in lost.items():
            if is_lost:
                warnings.warn(
                    f"{self._where}: the chat template does not write {key!r} of the data, so the model does not see it",
                    UserWarning,
                    stacklevel=2,
                )
        return chosen

    def reads(self, name: str) -> bool:
        """As ``ChatTemplate``."""
        return any(re.search(rf"\b{re.escape(name)}\b", source) for source in (self.source, self.tool_use or ""))

    def _reads(self, name: str) -> bool:
        """Whether the template asks for a name, or writes messages whole."""
        return name in self.source or bool(re.search(r"\bm\w*\s*\|\s*tojson", self.source))

    def answers(self, conversation: Conversation) -> list[Piece] | None:
        """The rendered text in pieces: those inside ``{% generation %}`` with the index of their message, the others with None.

        None if the template has no such tag.

        Raises:
            TokenizerError: Only some answers are trained on, and it is unclear which ones the template marks.
        """
        chosen = self._for(conversation)
        if not chosen._marked:
            return None
        text = chosen._render(True, conversation.map(_without_marks), self.now)
        parts = re.split(f"[{OPEN}{CLOSE}]", text)
        written = [index for index, message in enumerate(conversation.messages) if message.is_answer]
        if len(parts) < 3 or not written:
            return None
        if len(parts) // 2 != len(written):
            if not all(conversation.messages[index].train for index in written):
                raise TokenizerError(
                    f"{self._where}: the chat template marks {len(parts) // 2} texts of {len(written)} answers by "
                    "{% generation %}, so it is unclear which of them are trained on; set data.train_on to all, and leave "
                    "out weights of messages"
                )
            written = [written[-1]] * (len(parts) // 2)
        return [(part, written[i // 2] if i % 2 else None) for i, part in enumerate(parts) if part]

    @cached_property
    def _marked(self) -> Any:
        """The template with marks around answers; None where it does not know them."""
        if not re.search(r"{%-?\s*generation\b", self.source):
            return None
        return sandbox.compile_template(self.source, self._where, marks=True)

    def _render(self, marked: bool, conversation: Conversation, now: datetime | None) -> str:
        special = self._tokenizer.special
        values: dict[str, Any] = {
            **conversation.variables,
            **special.named,
            "messages": [message.as_dict() for message in conversation.messages],
            "tools": [*conversation.tools] or None,
            "documents": None,
            "add_generation_prompt": conversation.add_generation_prompt,
            "special_tokens": list(special.ids),
        }
        template = self._marked if marked else self._template
        messages, failed = values["messages"], None
        for spelled in _spellings(messages) if any("tool_calls" in message for message in messages) else [messages]:
            try:
                text = sandbox.render(template, self._where, {**values, "messages": spelled}, now)
            except sandbox.RenderError as error:
                failed = failed or error
                continue
            bare = [{key: message[key] for key in message if key != "tool_calls"} for message in spelled]
            if spelled == bare or text != self._without_calls(template, {**values, "messages": bare}, now):
                return text
        raise failed or TokenizerError(f"{self._where}: {CALLS_LOST}")

    def _without_calls(self, template: Any, values: Mapping[str, Any], now: datetime | None) -> str | None:
        """The text of messages whose calls of tools were left out; None where the template refuses them."""
        try:
            return sandbox.render(template, self._where, values, now)
        except sandbox.RenderError:
            return None

    def save(self, folder: Path) -> None:
        """Puts the template into ``tokenizer_config.json``, or both if there are two."""
        named = {"default": self.source, TOOL_USE: self.tool_use}
        both = [{"name": name, "template": source} for name, source in named.items()]
        write_json(
            folder / CONFIG, {**read_json(folder / CONFIG), TEMPLATE_KEY: both if self.tool_use else self.source}
        )


class TurnTemplate(ChatTemplate):
    """PaddleNLP's kind: ``system``, ``conversation`` (user's part, bot's part) and ``query``, the last user's part.

    ``query`` must be how a turn of ``conversation`` begins; else training and generation would see different texts.
    """

    def __init__(self, content: dict[str, Any], tokenizer: Tokenizer, where: str):
        super().__init__(tokenizer)
        self._content = content
        self._where = where
        parts = content.get("conversation")
        texts = [content.get("query"), *(parts if isinstance(parts, list) else [])]
        if len(texts) != 3 or not all(isinstance(text, str) for text in texts):
            raise TokenizerError(f'{where} needs "query": text and "conversation": [user text, bot text]')
        self._query, self._user, self._bot = (sandbox.compile_template(text, where, True) for text in texts)
        self._system = sandbox.compile_template(content.get("system") or "", where, True)
        probe = Conversation((("U", "B"),))
        whole, asked = self.text(probe), self.text(Conversation((("U", None),)))
        if not whole.startswith(asked):
            raise TokenizerError(
                f"{where}: a turn is trained as {whole!r}, but generation would begin with {asked!r}; make query the "
                "beginning of conversation"
            )

    def text(self, conversation: Conversation) -> str:
        """The system's text and all turns.

        Raises:
            TokenizerError: The conversation is more than a system prompt and turns of a user and an assistant.
        """
        beyond = conversation.beyond_turns()
        if beyond:
            raise TokenizerError(
                f"{self._where}: a template of this kind writes a system prompt, user texts and an answer to each, and the "
                f"conversation has {beyond}; use a jinja template"
            )
        system = conversation.system
        context = {} if system is None else {"system": system}
        head = sandbox.render(self._system, self._where, context)
        if system is not None and system not in head:
            head = system
        parts = [head]
        for index, (user, answer) in enumerate(conversation.turns):
            if answer is None:
                parts.append(self._part(self._query, context, query=user, user=user, index=index))
            else:
                parts.append(self._part(self._user, context, user=user, index=index))
                parts.append(self._part(self._bot, context, bot=answer, index=index))
        return "".join(parts)

    def _part(self, template: Any, context: dict[str, str], **values: Any) -> str:
        return sandbox.render(template, self._where, {**context, **values}, self.now)

    def save(self, folder: Path) -> None:
        """Writes ``chat_template.json``."""
        write_json(folder / JSON_FILE, self._content)


def _spellings(messages: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Messages with calls of tools, as they are and as other templates expect them.

    Arguments are an object in some, and JSON text in OpenAI's API and others; a message of calls has an empty text in some,
    and none in others.
    """
    yield [*messages]
    for empty in (lambda content: content, lambda content: content or "", lambda content: content or None):
        for as_text in (False, True):
            yield [
                {
                    **message,
                    "content": empty(message["content"]),
                    "tool_calls": [_called(call, as_text) for call in message["tool_calls"]],
                }
                if message.get("tool_calls")
                else message
                for message in messages
            ]


def _called(call: Mapping[str, Any], as_text: bool) -> dict[str, Any]:
    """A call, its arguments as JSON text if they are to be text."""
    function = dict(call["function"])
    if as_text and not isinstance(function.get("arguments", ""), str):
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": function}


def load_template(
    choice: str, folder: Path, tokenizer: Tokenizer, card: Family | Wording | None = None
) -> ChatTemplate | None:
    """The chat template to use with a model.

    Args:
        choice: ``"auto"`` = the model folder's own, ``"family"`` = the card's, ``"none"``, or a file or folder with a
            template.
        folder: The model folder.
        tokenizer: Its tokenizer.
        card: The family's card.

    Raises:
        TokenizerError: The named template does not exist, is not valid, or uses what the sandbox forbids.
    """
    if choice == "none":
        return None
    if choice == "auto":
        return _from_folder(folder, tokenizer)
    if choice == "family":
        return _from_card(card, tokenizer)
    path = Path(choice).expanduser()
    found = _from_folder(path, tokenizer) if path.is_dir() else _from_file(path, tokenizer)
    if found is None:
        raise TokenizerError(f"{path} holds no chat template; looked for {JSON_FILE}, {JINJA_FILE} and {CONFIG}")
    return found


def _from_card(card: Family | Wording | None, tokenizer: Tokenizer) -> ChatTemplate:
    if card is None or not card.chat_template:
        name = card.name if card else "no family"
        raise TokenizerError(
            f"the card of {name} has no chat template, so 'family' cannot be chosen; name a file or folder with a "
            "template, or choose auto or none"
        )
    return JinjaTemplate(card.chat_template, tokenizer, f"the card of {card.name}")


def _from_folder(folder: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    for name in (JSON_FILE, JINJA_FILE, CONFIG):
        if (folder / name).is_file():
            found = _from_file(folder / name, tokenizer)
            if found:
                return found
    return None


def _from_file(path: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    if not path.is_file():
        raise TokenizerError(f"there is no chat template {path}")
    if path.suffix != ".json":
        beside = path.parent / MORE_TEMPLATES / f"{TOOL_USE}.jinja"
        tool_use = read_text(beside) if path.name == JINJA_FILE and beside.is_file() else None
        return JinjaTemplate(read_text(path), tokenizer, str(path), tool_use)
    content = read_json(path)
    if "conversation" in content:
        return TurnTemplate(content, tokenizer, str(path))
    source = content.get(TEMPLATE_KEY)
    default, tool_use = _named(source, path) if isinstance(source, list) else (source, None)
    if default and not isinstance(default, str):
        raise TokenizerError(f"{path}: {TEMPLATE_KEY} must be text, not a {type(default).__name__}")
    return JinjaTemplate(default, tokenizer, str(path), tool_use) if default else None


def _named(sources: Sequence[Any], path: Path) -> tuple[str, str | None]:
    """The template called ``default``, and that of conversations with tools, if there is one."""
    by_name = {str(row.get("name")): row.get("template") for row in sources if isinstance(row, dict)}
    if not isinstance(by_name.get("default"), str):
        raise TokenizerError(f"{path} has chat templates {json.dumps(list(by_name))}, but none called 'default'")
    tool_use = by_name.get(TOOL_USE)
    return str(by_name["default"]), tool_use if isinstance(tool_use, str) else None


def _without_marks(text: str) -> str:
    """A user's text with its private-use characters escaped, so that they are not read as marks of answers."""
    return re.sub(f"[{OPEN}{CLOSE}]", lambda match: protect.marked(match[0]), text)
