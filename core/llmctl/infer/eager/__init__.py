"""Generation with the training layers and with exported static programs, a batch at a time."""
