"""What a model family is, as data: tensors, shapes, settings, sizes and what follows from them. No paddle, no numpy."""
