"""File formats of weights: safetensors, torch's .bin, paddle's .pdparams; each describes its tensors as a TensorInfo."""
