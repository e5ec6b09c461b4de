"""Requests from what a Python caller gives: texts, token ids or messages, parameters and adapters by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmctl.card.decoder_spec import PrefixLM
from llmctl.data.sft.encoding import prompt_ids, text_ids
from llmctl.errors import ConfigError, UnsupportedError
from llmctl.infer.request import Request
from llmctl.infer.sampling import SamplingParams
from llmctl.infer.sampling.defaults import shortened
from llmctl.infer.text.generator import TextRequest
from llmctl.infer.text.messages import Message, conversation_of
from llmctl.tokenizers import Tokenizer

Prompt = str | Sequence[int]
Params = SamplingParams | Sequence[SamplingParams] | None
Adapter = str | Sequence[str | None] | None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What requests to one model are made with.

    Attributes:
        tokenizer: The model's.
        vocab: Number of its tokens.
        max_positions: Maximum number of tokens of prompt and answer together; 0 = no limit.
        adapters: Names of adapters that requests choose among.
        prefix_lm: The marks of a prompt that is read in both directions; None = there are none, or they are not known.
        causal: Whether tokens depend only on those before them.
        default_params: How tokens are chosen where it is not said; answers end where the model's positions end.
    """

    tokenizer: Tokenizer
    vocab: int
    max_positions: int
    adapters: tuple[str, ...] = ()
    prefix_lm: PrefixLM | None = None
    causal: bool = True
    default_params: SamplingParams = SamplingParams()

    def prompt(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt that is continued as it is, without a chat template.

        Raises:
            ConfigError: An id is not in the vocabulary.
        """
        return text_ids(self.tokenizer, prompt) if isinstance(prompt, str) else self._known(prompt)

    def conversation(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation whose next answer is generated.

        Raises:
            DataError: Roles or contents are not as they should be, or they need a chat template and there is none.
        """
        return prompt_ids(self.tokenizer, conversation_of(messages), "messages", "chat_template")

    def requests(self, prompts: Sequence[list[int]], params: Params, adapter: Adapter) -> list[TextRequest]:
        """A request for each prompt.

        Args:
            prompts: Token ids.
            params: How tokens are chosen, for all or one for each; None = the defaults.
            adapter: Name of the adapter, for all or one for each; None = no adapter by name.

        Raises:
            ConfigError: A parameter has no effect, an adapter is not loaded, or a list does not have one entry for each prompt.
        """
        given = [*params] if isinstance(params, Sequence) else [params or self._default(prompt) for prompt in prompts]
        if len(given) != len(prompts):
            raise ConfigError(f"params has {len(given)} entries for {len(prompts)} prompts; give one, or one for each")
        for one in given:
            if one.without_effect:
                raise ConfigError(
                    f"{', '.join(one.without_effect)} has no effect without sample=True; add it, or leave it out"
                )
        rows = zip(prompts, given, self._adapters(adapter, len(prompts)), strict=True)
        return [TextRequest(prompt, one, index, number) for index, (prompt, one, number) in enumerate(rows)]

    def _default(self, prompt: Sequence[int]) -> SamplingParams:
        return shortened(self.default_params, len(prompt), self.max_positions)

    def score_requests(self, texts: Sequence[Prompt], adapter: Adapter) -> list[Request]:
        """A request for the log-probabilities of each text.

        Args:
            texts: Texts or token ids.
            adapter: As for ``requests``.

        Raises:
            LlmctlError: A text is too short or too long, or cannot be scored by this model.
        """
        adapters = self._adapters(adapter, len(texts))
        return [self._score_request(self._whole(text), number) for text, number in zip(texts, adapters, strict=True)]

    def _whole(self, text: Prompt) -> list[int]:
        """Token ids of a text that is not continued."""
        if not isinstance(text, str):
            return self._known(text)
        return [*self.tokenizer.special.prefix, *self.tokenizer.encode(text, add_special=False)]

    def _score_request(self, ids: list[int], adapter: int) -> Request:
        rule = self.prefix_lm
        if rule is None and not self.causal:
            raise UnsupportedError(
                "this exported program reads prompts in both directions and does not say where they end; score with the model's "
                "own folder"
            )
        if rule is not None and rule.end not in ids[:-1]:
            raise UnsupportedError(
                "this model reads a prompt in both directions, so only what follows it has log-probabilities; give token ids: "
                f"the prompt, the token {rule.end} that ends it, and the text that follows"
            )
        if len(ids) < 2:
            raise ConfigError("a text of fewer than two tokens has no log-probabilities; write more")
        if self.max_positions and len(ids) > self.max_positions:
            raise ConfigError(
                f"the text has {len(ids)} tokens; that is over the {self.max_positions} positions of the model. Shorten it"
            )
        first = 1 if rule is None else ids.index(rule.end) + 1
        return Request(prompt=ids, adapter=adapter, score_from=first)

    def _known(self, prompt: Sequence[int]) -> list[int]:
        ids = [int(token) for token in prompt]
        strange = next((token for token in ids if not 0 <= token < self.vocab), None)
        if strange is not None:
            raise ConfigError(f"the prompt has the token {strange}; the model knows those from 0 to {self.vocab - 1}")
        return ids

    def _adapters(self, adapter: Adapter, count: int) -> list[int]:
        """The index of each request's adapter; -1 = none by name."""
        names = [adapter] * count if adapter is None or isinstance(adapter, str) else [*adapter]
        if len(names) != count:
            raise ConfigError(f"adapter has {len(names)} names for {count} prompts; give one, or one for each")
        for name in names:
            if name is not None and name not in self.adapters:
                known = ", ".join(self.adapters) or "none"
                raise ConfigError(f"adapter={name!r} is not loaded; loaded by name: {known}")
        return [-1 if name is None else self.adapters.index(name) for name in names]
