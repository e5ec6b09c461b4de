"""Counters and histograms as Prometheus reads them (text format 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
HELP = {
    "requests_total": "Requests by path and status.",
    "answers_total": "Answers by why they ended.",
    "prompt_tokens_total": "Tokens of prompts.",
    "cached_tokens_total": "Tokens of prompts that were found in the KV cache.",
    "generated_tokens_total": "Tokens of answers.",
    "time_to_first_token_seconds": "From the arrival of a request to the first token of an answer.",
    "request_seconds": "From the arrival of a request to the end of its answers.",
    "answers_held": "Answers that run or wait.",
    "waiting_prompt_tokens": "Tokens of prompts that have no first token yet.",
    "engine_running": "Answers that have blocks of the KV cache.",
    "engine_waiting": "Answers that have none.",
    "engine_steps_total": "Steps of the engine.",
    "engine_computed_tokens_total": "Tokens that went through the model.",
    "engine_preemptions_total": "How often an answer gave up its blocks.",
    "engine_restarts_total": "How often a step failed and the engine began anew.",
    "kv_cache_usage_ratio": "Share of the KV cache's blocks that are used.",
    "engine_up": "Whether the engine takes requests.",
}
"""Metric without ``llmctl_`` -> what it says; the type follows from the name."""


class Metrics:
    """What is counted while the server runs; for the event loop."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._times: dict[str, list[int]] = {}
        self._sums: Counter[str] = Counter()

    def count(self, name: str, labels: str = "", by: int = 1) -> None:
        """Adds to a counter.

        Args:
            name: A key of ``HELP``.
            labels: Its labels as they are written.
            by: How much.
        """
        self._counts[name, labels] += by

    def time(self, name: str, seconds: float) -> None:
        """Adds a time to a histogram."""
        buckets = self._times.setdefault(name, [0] * (len(SECONDS) + 1))
        buckets[bisect_left(SECONDS, seconds)] += 1
        self._sums[name] += seconds  # type: ignore[assignment]

    def text(self, gauges: Mapping[str, float]) -> str:
        """Everything, with the present values of gauges by name."""
        lines: list[str] = []
        rows = [*self._counts.items(), *(((name, ""), value) for name, value in gauges.items())]
        for name in sorted({name for (name, _), _ in rows}):
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP llmctl_{name} {HELP[name]}", f"# TYPE llmctl_{name} {kind}"]
            lines += [f"llmctl_{name}{{{labels}}} {value:g}" if labels else f"llmctl_{name} {value:.12g}"
                      for (other, labels), value in sorted(rows) if other == name]  # fmt: skip
        for name, buckets in sorted(self._times.items()):
            lines += [f"# HELP llmctl_{name} {HELP[name]}", f"# TYPE llmctl_{name} histogram"]
            total = 0
            for bound, count in zip([*map(str, SECONDS), "+Inf"], buckets, strict=True):
                total += count
                lines.append(f'llmctl_{name}_bucket{{le="{bound}"}} {total}')
            lines += [f"llmctl_{name}_sum {self._sums[name]:.6f}", f"llmctl_{name}_count {total}"]
        return "\n".join(lines) + "\n"
