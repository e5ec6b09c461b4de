"""Limits on the time, memory, size and depth that untrusted files may use.

A file that exceeds one is refused; the message names the file and the limit.
"""

TEMPLATE_SECONDS = 10.0
"""Time of one rendering of a chat template."""

TEMPLATE_CHARACTERS = 16 << 20
"""Length of every text that a chat template makes, the result included."""

TEMPLATE_ITEMS = 1_000_000
"""Items of a list or range in a chat template, and bits of a number."""

TOKENIZER_GROWTH = 64
"""How many times longer the normalizers of a tokenizer may make a text; those in use replace a character by another."""

PICKLE_OPCODES = 2_000_000
"""Opcodes of a pickle: a tensor takes about 30; this many take seconds and less than 500 MB."""

PICKLE_TEXT = 4096
"""Bytes of a string in a pickle; a longer one is kept as a range of the file."""

PICKLE_ALL_TEXT = 64 << 20
"""Bytes of all strings in a pickle."""

PICKLE_INTEGER = 16
"""Bytes of a whole number in a pickle."""

PATTERN_SECONDS = 2.0
"""Time of matching a regular expression of an adapter or a model against one name."""

PATTERN_CHARACTERS = 100_000
"""Length of a regular expression of an adapter or a model."""

MODEL_PARTS = 100_000
"""Layers times experts of a config.json; each has tensors of its own."""

LINE_BYTES = 1 << 28
"""Bytes of a line of data, decompressed."""

YAML_DEPTH = 200
"""Brackets of a YAML text that are open at once."""

YAML_NODES = 200_000
"""Values of a YAML file, an alias counts as the values that it refers to."""
