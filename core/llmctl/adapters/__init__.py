"""LoRA adapters and prefixes: target layers, formats on disk, attaching to a model, merging.

``targets`` selects layers, ``adapter`` is a LoRA adapter in memory, ``prefix`` a prefix. ``folder`` reads and writes both,
in the format of PEFT (``peft_config``, ``peft_format``, ``peft_modules``, ``peft_weights``, ``prefix_format``) or of PaddleNLP (``paddlenlp_lora``,
``paddlenlp_prefix``); ``repack`` converts between layers that a file fuses and those of the card. ``base_model`` checks
that a model is the base of an adapter, ``own_tensors`` puts whole tensors and rows of an adapter in its place, ``attach`` applies an adapter to a model, ``merge`` writes a merged model folder and
``verify`` compares it. The layers are ``nn.lora`` and ``nn.prefix``, their training is in ``llmctl.train.trainable``.

Adapters are stored for the unchanged base model: a PiSSA adapter, whose training changes the base, is stored as the plain
LoRA adapter [A, A0], [B, -B0] that has the same effect. A base model is recognized by the shapes of its tensors and by a
corner of every linear weight rounded to bfloat16, so copies in another layout or data type are accepted, and models with
other weights are not.
"""
