"""Training data: reading and checking (``reading``), ids and labels (``encoding``), batches (``batching``).

``reading`` needs neither numpy nor paddle, so that a broken file is known before anything heavy is imported.
"""
