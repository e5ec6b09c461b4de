"""PaddleNLP's ``llm`` toolkit: flat JSON, ``*_argument.json``."""
