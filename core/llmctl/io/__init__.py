"""Files of any content: atomic writes, JSON, hashes, sizes such as ``5GB``, writing in a background thread.

Formats of weights are in ``llmctl.checkpoint.formats``, configuration files in ``llmctl.config.file``.
"""
