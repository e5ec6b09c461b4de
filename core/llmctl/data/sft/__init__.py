"""Examples for supervised fine-tuning: read, encoded as tokens and labels, collated into batches."""
