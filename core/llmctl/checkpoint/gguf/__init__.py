"""Models in GGUF files, as llama.cpp runs them: read as model folders, and written.

``parts`` reads the headers of all files of a model, ``names`` has the names of tensors, by the slots of a card, ``tensors``
their values and codes, ``metadata`` the configuration, ``vocabulary`` the tokenizer, ``folder`` makes a folder of a file, and
``write`` a file of a folder. The container is in ``checkpoint.formats.gguf``, blocks are in ``quant.formats.gguf_blocks``,
which files are one model in ``io.gguf_files``.
"""
