"""Models with packed weights: made from a checkpoint, kept in a folder that is mapped into memory."""
