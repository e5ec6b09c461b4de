"""Supervised fine-tuning examples: read from JSON lines, encoded as tokens and labels, collated into batches."""
