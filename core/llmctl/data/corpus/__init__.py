"""Pretraining corpora in Megatron's format: built, inspected, blended, and cut into samples.

Samples are those of Megatron's GPT datasets, number by number; but a blend requests exactly the samples that it needs of
each corpus, not 0.5 % more. Indices are cached under a hash of the document lengths, so a corpus that is rebuilt under the
same name is not mistaken for the old one.
"""
