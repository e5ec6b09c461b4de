"""``llmctl.LLM``: a model folder that answers prompts and conversations, streams, and scores texts."""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, overload

from llmctl.errors import ConfigError, LlmctlError
from llmctl.infer.backend import thread_safe
from llmctl.infer.options import EngineOptions
from llmctl.infer.sampling import SamplingParams
from llmctl.infer.select import open_backend
from llmctl.infer.text.generator import TextGenerator, TextOutput, generator_of
from llmctl.infer.text.inputs import Adapter, Inputs, Params, Prompt
from llmctl.infer.text.messages import Message
from llmctl.infer.text.score import TextScore, score_texts

Ids = Sequence[int]
Texts = list[str] | tuple[str, ...]


class LLM:
    """A loaded model. Several threads may use it at the same time; each gets the answers that it would get alone.

    Close it, or use it in a ``with`` statement, to free its memory.

    Args:
        folder: A model folder, an adapter's folder, an exported program, a packed folder or the output folder of a run;
            or a name on a hub, ``"owner/name"``.
        family: Name of a family, or ``"auto"`` for the one that the folder names.
        chat_template: ``"auto"`` = the folder's own if any, ``"family"`` = the family's, ``"none"``, or a file or folder with a
            template.
        **options: Fields of ``llmctl.infer.options.EngineOptions``: engine, weights, group, kv, cache_memory, batch_size,
            step_tokens, speculate, beams, length_penalty, adapter, base, allow_other_base, no_cache.

    Attributes:
        engine: ``dynamic``, ``static`` or ``fused``.
        notes: Why this engine was chosen, and what would make it faster; may be empty.
        tokenizer: The model's.
        max_positions: Maximum number of tokens of prompt and answer together; 0 = no limit.
        adapters: Names of adapters that requests choose among.
        default_params: How tokens are chosen where ``params`` is None: by the model's generation_config.json, else greedily.
            ``dataclasses.replace`` makes others of it.

    Raises:
        LlmctlError: The folder cannot be opened, or an option is unknown, out of range or without effect.
    """

    def __init__(
        self, folder: str | Path, *, family: str = "auto", chat_template: str = "auto", **options: Any
    ) -> None:
        chosen = _options(options)
        handle = open_backend(Path(folder), family, chosen)
        self.tokenizer = handle.tokenizer(chat_template)
        # The KV cache has room for as many sequences of any length as are computed together.
        loaded = handle.load(self.tokenizer, [None] * chosen.rows(handle.engine))
        self.engine, self.max_positions = loaded.engine, loaded.max_positions
        self.notes, self.adapters = (*handle.notes, *loaded.notes), handle.adapters
        self.default_params = handle.sampling_defaults().params()
        self._inputs = Inputs(
            tokenizer=self.tokenizer, vocab=handle.vocab, max_positions=self.max_positions, adapters=self.adapters,
            prefix_lm=handle.prefix_lm, causal=handle.causal, default_params=self.default_params,
        )  # fmt: skip
        backend = thread_safe(loaded.backend)
        self._generator: TextGenerator | None = generator_of(backend, self.max_positions, self.tokenizer, chosen)
        self._close = weakref.finalize(self, backend.close)

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the engine and frees the model. Calls of other threads that have not returned raise an error."""
        self._generator = None
        self._close()

    @overload
    def generate(self, prompts: str | Ids, params: Params = None, adapter: Adapter = None) -> TextOutput: ...
    @overload
    def generate(
        self, prompts: Texts | Sequence[Ids], params: Params = None, adapter: Adapter = None
    ) -> list[TextOutput]: ...
    def generate(self, prompts: Any, params: Params = None, adapter: Adapter = None) -> TextOutput | list[TextOutput]:
        """Continues prompts as they are, without a chat template.

        Args:
            prompts: A text or its token ids, or a list of them.
            params: How tokens are chosen, for all prompts or one for each; None = ``default_params``.
            adapter: Name of the adapter, for all prompts or one for each; None = the one for every prompt, if any.

        Returns:
            One output for one prompt; for a list a list, in the same order. An answer that fails while it is computed has the
            finish reason ``error``, and the others are complete.

        Raises:
            LlmctlError: A prompt is empty, too long or not of the vocabulary, or a parameter has no effect.
        """
        single = _is_prompt(prompts)
        rows = [self._inputs.prompt(prompt) for prompt in ([prompts] if single else prompts)]
        outputs = self._outputs(rows, params, adapter)
        return outputs[0] if single else outputs

    @overload
    def chat(self, messages: Sequence[Message], params: Params = None, adapter: Adapter = None) -> TextOutput: ...
    @overload
    def chat(
        self, messages: Sequence[Sequence[Message]], params: Params = None, adapter: Adapter = None
    ) -> list[TextOutput]: ...
    def chat(self, messages: Any, params: Params = None, adapter: Adapter = None) -> TextOutput | list[TextOutput]:
        """Answers conversations, which the chat template writes as in training.

        Args:
            messages: A list of ``{"role": ..., "content": ...}``, or a list of such lists. Roles are system (once, first), then
                user and assistant by turns, ending with user.
            params: As for ``generate``.
            adapter: As for ``generate``.

        Returns:
            As ``generate``.

        Raises:
            LlmctlError: As for ``generate``; or roles or contents are wrong, or they need a chat template that there is not.
        """
        single = _is_conversation(messages)
        rows = [self._inputs.conversation(talk) for talk in ([messages] if single else messages)]
        outputs = self._outputs(rows, params, adapter)
        return outputs[0] if single else outputs

    def stream(
        self, prompt: Prompt | Sequence[Message], params: SamplingParams | None = None, adapter: str | None = None
    ) -> Iterator[str]:
        """The text of an answer in pieces, as they are known. Closing the iterator cancels the request.

        Args:
            prompt: A text or its token ids, as for ``generate``, or messages, as for ``chat``.
            params: How tokens are chosen; None = ``default_params``.
            adapter: Name of the adapter.

        Raises:
            LlmctlError: As for ``generate``, at once; or the answer fails while it is computed.
        """
        generator, read = self._running(), self._inputs
        ids = read.conversation(prompt) if _is_conversation(prompt) else read.prompt(prompt)  # type: ignore[arg-type]
        (request,) = read.requests([ids], params, adapter)
        generator.check(request)
        return generator.stream(request)

    @overload
    def score(self, texts: str | Ids, adapter: Adapter = None) -> TextScore: ...
    @overload
    def score(self, texts: Texts | Sequence[Ids], adapter: Adapter = None) -> list[TextScore]: ...
    def score(self, texts: Any, adapter: Adapter = None) -> TextScore | list[TextScore]:
        """Log-probabilities of given texts. Nothing is generated.

        Args:
            texts: A text or its token ids, or a list of them.
            adapter: As for ``generate``.

        Returns:
            One score for one text, a list for a list.

        Raises:
            LlmctlError: A text has fewer than two tokens, is too long, or cannot be scored by this model.
        """
        single = _is_prompt(texts)
        backend = self._running().backend
        scores = score_texts(backend, self._inputs.score_requests([texts] if single else texts, adapter))
        return scores[0] if single else scores

    def _outputs(self, prompts: list[list[int]], params: Params, adapter: Adapter) -> list[TextOutput]:
        outputs = self._running().generate(self._inputs.requests(prompts, params, adapter))
        for output in outputs:
            if output.cause is not None:
                raise output.cause
        return outputs

    def _running(self) -> TextGenerator:
        if self._generator is None:
            raise LlmctlError("this LLM is closed; make a new one")
        return self._generator


def _options(given: Mapping[str, Any]) -> EngineOptions:
    known = [row.name for row in fields(EngineOptions)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"LLM has no option {name!r}; {hint}")
    return EngineOptions(**given)


def _is_prompt(prompts: Any) -> bool:
    """Whether this is one prompt, a text or token ids, not a list of prompts."""
    return isinstance(prompts, str) or (len(prompts) > 0 and not isinstance(prompts[0], str | Sequence))


def _is_conversation(messages: Any) -> bool:
    """Whether this is a list of messages."""
    return not isinstance(messages, str) and len(messages) > 0 and isinstance(messages[0], Mapping)
