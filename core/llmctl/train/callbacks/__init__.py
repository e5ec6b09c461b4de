"""What happens besides the optimizer steps: checkpoints, metrics, progress, early stopping, EMA. The base class is in ``base``."""
