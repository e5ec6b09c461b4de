"""LLaMA-Factory: flat YAML, with ``dataset_info.json`` beside the data."""
