"""A model family as data: tensors, symbolic shapes, fields of config.json, sizes, and what follows. No paddle, no numpy."""
