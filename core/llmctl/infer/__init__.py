"""Generation: choosing tokens (``sampling``), batches of prompts (``generate``), text and stop strings (``text``),
files of prompts and conversations (``session``).

Options are checked without numpy or paddle, so that a mistake on the command line is known at once.
"""
