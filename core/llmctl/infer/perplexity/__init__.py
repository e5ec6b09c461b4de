"""How well models predict given text: perplexity, bits per byte, and how far another model's predictions are from theirs.

``windows`` cuts texts and conversations to what a model can read at once, ``measure`` asks a backend for log-probabilities,
and ``compare`` holds the predictions of one model against those of the next.
"""
