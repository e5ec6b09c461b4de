"""What Python users call, exported as names of ``llmctl``; every module is imported on the first use of its names."""
