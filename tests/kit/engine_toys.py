"""Engines over a toy executor, requests to them, and what must hold when they are idle."""

import numpy as np
from kit.paged_toy import VOCAB, graph

from llmctl.card.decoder_spec import PrefixLM
from llmctl.infer.engine.engine import Engine
from llmctl.infer.executors.base import BLOCK
from llmctl.infer.request import Request
from llmctl.infer.sampling import SamplingParams

END = (0, 1)


MARK, CLOSE = 2, 3


MODELS = {
    "causal": graph(),
    "window": graph(window=5),
    "one token": graph(window=1),
    "contexts": graph(prefix_lm=PrefixLM(end=CLOSE, mask_ids=(MARK,))),
}


def engine_of(model, executor, blocks=64, virtual=None, **options):
    return Engine(executor, model, blocks=blocks, end_ids=END, prefix=virtual, adapters=2, **options)


def ask(prompt, new=12, **options):
    own = ("index", "adapter", "draft", "constraint", "on_event")
    fields = {name: options.pop(name) for name in own if name in options}
    return Request(prompt=prompt, options=SamplingParams(max_new_tokens=new, **options), **fields)


def prompts(count, seed=0, lengths=(3, 40)):
    draws = np.random.default_rng(seed)
    return [draws.integers(4, VOCAB, draws.integers(*lengths)).tolist() for _ in range(count)]


def idle(engine, virtual=0):
    """Whether only virtual tokens are left in the cache."""
    state = engine.statistics()
    return (state.used_blocks, state.used_positions, state.running, state.waiting) == (
        -(-virtual // BLOCK),
        virtual,
        0,
        0,
    )
