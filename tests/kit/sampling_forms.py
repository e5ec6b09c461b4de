"""Ways of sampling, with logits and contexts."""

import numpy as np

from llmctl.infer.sampling.rows import SamplerInput

VOCAB, ROWS = 3001, 24


RANDOM = np.random.default_rng(0)


LOGITS = (3 * RANDOM.standard_normal((ROWS, VOCAB))).astype(np.float32)


SAID = RANDOM.integers(0, VOCAB, 400).astype(np.int32)


FORMS = {
    "greedy": SamplerInput(),
    "greedy with penalties": SamplerInput(context=SAID, generated=90, repetition=3.0, presence=0.5, frequency=1.5),
    "plain": SamplerInput(sample=True),
    "temperature": SamplerInput(sample=True, temperature=0.3),
    "top-k": SamplerInput(sample=True, top_k=40),
    "top-k of all": SamplerInput(sample=True, top_k=VOCAB),
    "top-p": SamplerInput(sample=True, top_p=0.8),
    "hardly any top-p": SamplerInput(sample=True, top_p=1e-9),
    "nearly all top-p": SamplerInput(sample=True, top_p=1 - 1e-9),
    "min-p": SamplerInput(sample=True, min_p=0.05),
    "only the likeliest": SamplerInput(sample=True, min_p=1.0),
    "everything": SamplerInput(
        context=SAID, generated=90, excluded=SAID[:7], sample=True, temperature=1.4, top_k=300, top_p=0.9, min_p=0.01,
        repetition=1.3, presence=0.2, frequency=0.1,
    ),
    "nearly flat": SamplerInput(sample=True, temperature=100.0, top_p=0.7),
    "flat": SamplerInput(sample=True, temperature=1e6, top_p=0.25),
    "sharp": SamplerInput(sample=True, temperature=1e-3),
    "as sharp as can be": SamplerInput(sample=True, temperature=5e-324, top_k=9, top_p=0.9, min_p=0.5),
}  # fmt: skip
