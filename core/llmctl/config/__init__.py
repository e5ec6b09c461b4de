"""Configurations of ``finetune``, ``dpo`` and ``pretrain``: fields with their help, sections by command, YAML files, ``--set``.

``schema`` says what a field is, ``common`` holds the sections that commands share, ``finetune``, ``dpo`` and ``pretrain``
one command each, ``file`` reads files and overrides. A configuration is only checked against itself here; whether it fits
the model, the data and the output folder is checked in ``llmctl.jobs``. Nothing here imports paddle, numpy or rich.
"""
