"""Weight quantisation: block-wise codes and the linear layer that uses them."""
