"""What computes a step of the engine: native kernels, paddle's operations, or the numpy reference."""
