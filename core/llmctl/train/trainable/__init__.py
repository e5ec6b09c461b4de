"""What is trained: all parameters, LoRA adapters or a prefix; how it is loaded, saved and restored."""
