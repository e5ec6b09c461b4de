"""Generation with the training layers and with exported static programs, a batch at a time.

``generate`` asks a model for steps: ids and mask in, logits out (``model``). ``layer`` answers with the paddle layer of a
family, ``program`` with an exported program. ``export`` traces a program by running the layer once on tensors with open
sizes, so nothing of a family's code is rewritten or needed afterwards; ``export.json`` holds what else running it needs.
"""
