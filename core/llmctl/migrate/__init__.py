"""Conversion of configurations of other programs to those of llmctl: of PaddleNLP's ``llm`` toolkit and of LLaMA-Factory.

A ``Dialect`` is one program: its ``keys.yaml`` lists every key and what becomes of it, ``table`` reads it, ``rules`` holds the
rules for fields that follow from several keys. ``dialects`` recognises whose file it is, ``convert`` converts it. Below,
"old" means of the other program and "new" of llmctl. Weights and adapters need no conversion; see ``llmctl.checkpoint`` and
``llmctl.adapters``.
"""
