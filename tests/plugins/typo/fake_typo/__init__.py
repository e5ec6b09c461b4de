"""A plugin that misspells a hook."""

from llmctl import hookimpl


@hookimpl
def descibe_family():
    return None
