"""Training methods: supervised fine-tuning, preference optimisation, pretraining; their data, loss and evaluation."""
