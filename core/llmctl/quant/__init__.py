"""Quantised weights: block-wise codes and the linear layer over them."""
