"""Sampling: parameters of a request, the sampler, its numpy reference, log-probabilities. The names here import no numpy."""

from llmctl.infer.sampling.params import SAMPLE_ONLY, BrokenLogitsError, SamplingParams, TokenLogprob

__all__ = ["SAMPLE_ONLY", "BrokenLogitsError", "SamplingParams", "TokenLogprob"]
