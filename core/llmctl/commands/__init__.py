"""One module for each command of ``llmctl``; each gives a click command named ``command``."""
