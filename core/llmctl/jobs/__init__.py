"""A configuration that passed every check, before paddle is imported, and what can be told of its run."""
