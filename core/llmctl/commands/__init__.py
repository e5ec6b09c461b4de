"""One module per command of ``llmctl``, each with a click command: it parses options, calls core, and prints.

``cli.COMMANDS`` lists them. ``configured`` is what the three training commands share, ``recipe`` finds recipes,
``engine_options`` are the options of inference. Decisions are elsewhere: checks of a job in ``llmctl.jobs``, the choice of an
engine in ``llmctl.infer.select``.
"""
