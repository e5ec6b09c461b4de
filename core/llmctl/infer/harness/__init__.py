"""Tasks of EleutherAI's lm-evaluation-harness, answered by any engine.

``tokens`` cuts what a task asks into tokens as the harness's own Hugging Face model does, ``scorer`` has a backend answer it, and
``run`` hands both to the harness and reads its results. Only ``run`` imports the harness.
"""
