"""What is trained: all parameters (``full``), LoRA adapters (``lora``) or a prefix (``prefix``); loading, saving, resuming.

Each is independent of the training method. Each can also give the model as it was before training, for DPO: a frozen copy,
or its own layers with the adapter disabled.
"""
