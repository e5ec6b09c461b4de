"""Counting calls of a function, under every name that a module has for it."""

import functools
import importlib
import pkgutil
import sys
from collections import Counter

import llmctl


@functools.cache
def import_all():
    """Imports every module of core, so that none keeps a function that a test puts in another's place.

    Left out are those of extras that are not installed.
    """
    for module in pkgutil.walk_packages(llmctl.__path__, "llmctl."):
        if module.name.endswith(".__main__") or module.name.startswith("llmctl.testing"):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("llmctl"):
                raise


def count_calls(monkeypatch, function, key):
    """Number of calls of a function by what ``key`` gives for their first argument.

    Args:
        monkeypatch: pytest's.
        function: The function.
        key: From the first argument of a call.
    """
    import_all()
    calls = Counter()

    def counted(first, *args, **kwargs):
        calls[key(first)] += 1
        return function(first, *args, **kwargs)

    for module in [module for name, module in sys.modules.items() if name.startswith("llmctl")]:
        for name, value in list(vars(module).items()):
            if value is function:
                monkeypatch.setattr(module, name, counted)
    return calls
