"""Configurations of PaddleNLP's ``llm`` toolkit (flat JSON, ``*_argument.json``) as configurations of llmctl.

``keys.yaml`` says of every old key what it becomes, ``table`` reads it, ``derived`` holds the rules for settings that
follow from several old keys, ``convert`` puts a file together. Nothing here imports paddle.
"""
