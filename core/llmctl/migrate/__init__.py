"""Conversion of configurations of PaddleNLP's ``llm`` toolkit (flat JSON, ``*_argument.json``) to those of llmctl.

``keys.yaml`` lists every PaddleNLP key and what becomes of it, ``table`` reads it, ``derived`` holds the rules for fields
that follow from several keys, ``convert`` converts a whole file. Below, "old" means of PaddleNLP and "new" of llmctl.
Weights and adapters of PaddleNLP need no conversion; see ``llmctl.checkpoint`` and ``llmctl.adapters``.
"""
