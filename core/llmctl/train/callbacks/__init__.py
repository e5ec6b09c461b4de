"""What happens beside the updates: checkpoints, metrics, progress, early stopping, averages."""
