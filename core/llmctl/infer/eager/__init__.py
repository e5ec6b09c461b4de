"""Generation with the training layers and with exported static programs, a batch at a time.

``generate`` runs a model step by step: ids and mask in, logits out. ``model`` is the interface; ``layer`` implements it with the
paddle layer of a family, ``program`` with an exported program. ``export`` traces a program by running the layer once with
dynamic shapes, so the family's code is neither rewritten nor needed afterwards; ``export.json`` holds the other facts that
running it needs.
"""
