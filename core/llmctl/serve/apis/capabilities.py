"""``/v1/capabilities``: what this model can do here, from its card, its chat template, the engine and the support matrix."""

from __future__ import annotations

from typing import Any

from llmctl.errors import LlmctlError
from llmctl.serve.answers.formats import TYPES
from llmctl.serve.model import ServedModel


def capabilities(model: ServedModel) -> dict[str, Any]:
    """What a model can do. Reads the family's evidence: not for the event loop."""
    template = model.tokenizer.chat_template
    return {
        "object": "capabilities", "id": model.name, "adapters": [*model.adapters.names], "family": model.family,
        "system_fingerprint": model.system_fingerprint(""), "max_model_len": model.max_positions or None, "vocab_size": model.vocab,
        "several_answers_at_once": model.fused,
        "chat": {
            "template": template is not None, "tools": "template" if model.reads_tools else "system message",
            "call_form": {"begin": model.form.begin, "end": model.form.end, "listed": model.form.listed},
            "thoughts": [*model.thoughts] or None,
        },
        "response_format": [*TYPES] if model.grammars is not None else ["text"],
        "tool_choice": ["none", "auto", *(["required", "function"] if model.grammars is not None else [])],
        "logit_bias": model.fused, "prompt_logprobs": model.why_no_prompt_scores() or True, "embeddings": False,
        "defaults": {"temperature": 1.0, **{name: value for name, value in model.defaults.values.items() if value is not None}},
        "support": _support(model.family),
    }  # fmt: skip


def _support(family: str) -> dict[str, Any] | None:
    """The family's row of the support matrix; None = its plugin is not installed."""
    from llmctl import plugins
    from llmctl.plugins import matrix

    try:
        row = matrix.row(plugins.load(family))
    except LlmctlError:
        return None
    return {method: {"label": cell.label, "note": cell.note} for method, cell in row.items()}
