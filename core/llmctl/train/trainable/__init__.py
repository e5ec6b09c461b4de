"""What is trained: the full model, LoRA adapters, a prefix."""
