"""Checked jobs: all checks of a training configuration that need no paddle, and the memory estimate of a job.

A check opens the model, tokenizer and data once; the resulting ``CheckedJob`` carries them to ``llmctl.train``, so an error is
reported before paddle is imported and nothing is read twice. Checks of a configuration against itself are in
``llmctl.config``.
"""
