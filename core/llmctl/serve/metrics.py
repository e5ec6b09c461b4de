"""Counters and histograms as Prometheus reads them (text format 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate

QUOTE = '"'
SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
HELP = {
    "requests_total": "Requests by path and status.",
    "answers_total": "Answers by why they ended.",
    "prompt_tokens_total": "Tokens of prompts.",
    "cached_tokens_total": "Tokens of prompts that were found in the KV cache.",
    "generated_tokens_total": "Tokens of answers.",
    "time_to_first_token_seconds": "From the arrival of a request to the first token of an answer.",
    "inter_token_seconds": "From a token of a request to the next, those of a step together.",
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


VLLM = {
    "engine_running": "num_requests_running", "engine_waiting": "num_requests_waiting",
    "kv_cache_usage_ratio": "kv_cache_usage_perc", "engine_preemptions_total": "num_preemptions_total",
    "prompt_tokens_total": "prompt_tokens_total", "generated_tokens_total": "generation_tokens_total",
    "cached_tokens_total": "prefix_cache_hits_total", "answers_total": "request_success_total",
    "time_to_first_token_seconds": "time_to_first_token_seconds", "inter_token_seconds": "inter_token_latency_seconds",
    "request_seconds": "e2e_request_latency_seconds",
}  # fmt: skip
"""Metric -> vLLM's name for it, without ``vllm:``; its boards show them."""

NAMES = ("llmctl", "vllm")


class Metrics:
    """What is counted while the server runs; for the event loop.

    Args:
        names: One of ``NAMES``; those of vLLM are added to ours.
        model: Name of the model, a label of vLLM's metrics.
    """

    def __init__(self, names: str = "llmctl", model: str = "") -> None:
        self._vllm, self._model = names == "vllm", model
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
        counts: dict[str, dict[str, float]] = {}
        for (name, labels), value in [*self._counts.items(), *(((name, ""), value) for name, value in gauges.items())]:
            counts.setdefault(name, {})[labels] = value
        lines: list[str] = []
        for name in sorted(counts):
            kind = "counter" if name.endswith("_total") else "gauge"
            for shown, add in self._names(name):
                rows = [f"{shown}{_braces(add, labels)} {value:.12g}" for labels, value in sorted(counts[name].items())]
                lines += [f"# HELP {shown} {HELP[name]}", f"# TYPE {shown} {kind}", *rows]
        for name, buckets in sorted(self._times.items()):
            for shown, add in self._names(name):
                lines += [f"# HELP {shown} {HELP[name]}", f"# TYPE {shown} histogram"]
                for bound, total in zip([*map(str, SECONDS), "+Inf"], accumulate(buckets), strict=True):
                    lines.append(f"{shown}_bucket{_braces(add, f'le={QUOTE}{bound}{QUOTE}')} {total}")
                lines += [
                    f"{shown}_sum{_braces(add)} {self._sums[name]:.6f}",
                    f"{shown}_count{_braces(add)} {sum(buckets)}",
                ]
        return "\n".join(lines) + "\n"

    def _names(self, name: str) -> list[tuple[str, str]]:
        """Names of a metric, each with labels that go with it."""
        found = [(f"llmctl_{name}", "")]
        if self._vllm and name in VLLM:
            found.append((f"vllm:{VLLM[name]}", f'model_name="{self._model}"'))
        return found


def _braces(*labels: str) -> str:
    """Labels as they are written."""
    given = [one for one in labels if one]
    return f"{{{','.join(given)}}}" if given else ""
