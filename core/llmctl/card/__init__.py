"""A model family as data, its card: tensors with symbolic shapes, fields of config.json, sizes. No paddle, no numpy.

``family`` defines the card and its rows, ``config_fields`` the fields of config.json, ``dims`` their values for one model,
``shapes`` symbolic shapes, ``presets`` fields that many families share. ``weight_map``, ``sharding``, ``decoder_spec`` and
``fill_decoder`` say how tensors are stored, split and used; ``rope``, ``alibi`` and ``tokens`` are other facts of families.
``validate`` checks a card, ``support`` answers what a family supports.

A row may have ``when``: the field that decides whether the tensor exists (biases, an untied LM head). A value of config.json
that a family does not support is an error, and so is an unknown key that switches something on: ignoring either would give
wrong results silently. Two families may share an architecture name; ``recognise`` on their cards tells their config.json
apart. What core cannot derive from rows, such as the layers' forward pass, is in the plugin's ``modeling.py``.
"""
