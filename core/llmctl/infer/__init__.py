"""Inference: ``select`` finds the engine for a model folder, ``handle`` loads it, ``backend`` answers requests with it, ``text``
turns prompts into text.

Engines are ``engine`` (continuous batching) over ``executors`` and ``packed`` weights, and ``eager`` (the training layers, and
exported programs). Options are checked without numpy or paddle, so that mistakes are reported at once.
"""
