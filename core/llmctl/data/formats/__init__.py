"""The formats of examples that people have, each recognised by its keys, and how each becomes a conversation; no numpy.

``sft``, ``preference`` and ``prompts`` are tables of formats, over what ``conversations``, ``messages`` and ``rows`` read of a
line; ``reader`` finds the format of each line and counts, ``problems`` says what is wrong with those that cannot be used.
"""

from llmctl.data.formats.format import Format, chosen_formats
from llmctl.data.formats.preference import DPO, Choice
from llmctl.data.formats.problems import Problems
from llmctl.data.formats.prompts import PROMPT_KEYS, PROMPTS, TEXT
from llmctl.data.formats.reader import Reader, columns_of
from llmctl.data.formats.sft import SFT

__all__ = [
    "DPO",
    "PROMPTS",
    "PROMPT_KEYS",
    "SFT",
    "TEXT",
    "Choice",
    "Format",
    "Problems",
    "Reader",
    "chosen_formats",
    "columns_of",
]
