"""``python -m llmctl`` is ``llmctl``."""

from llmctl.cli import main

main()
