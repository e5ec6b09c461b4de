"""Configuration files (YAML or JSON) and the overrides of ``--set a.b=c``, as plain nested data."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmctl.errors import ConfigError
from llmctl.io.json_object import parse_json
from llmctl.io.limits import YAML_DEPTH, YAML_NODES


def read_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file.

    Raises:
        ConfigError: The file is missing, is not valid YAML or JSON, repeats a key, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist") from None
    except IsADirectoryError:
        raise ConfigError(
            f"{path} is a folder, and a configuration is a file in YAML or JSON; a model's folder is given with --model"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no configuration: it is not text in UTF-8") from None
    data = _parse_json(path, text) if path.suffix == ".json" else _parse_yaml(path, text)
    if not isinstance(data, dict):
        found = "it is empty" if data is None else f"it holds a {'list' if isinstance(data, list) else 'single value'}"
        raise ConfigError(f"{path}: expected sections such as model: and data:, but {found}")
    return data


def override(data: dict[str, Any], assignments: Sequence[str], option: str = "--set ") -> dict[str, Any]:
    """A copy with ``a.b=c`` assignments applied; values are parsed as YAML.

    Args:
        data: Nested mappings; paths and numpy's numbers become text and Python's numbers.
        assignments: The assignments.
        option: What messages put before an assignment.

    Raises:
        ConfigError: An assignment has no ``=``, or descends into a value that is not a section.
    """
    data = json.loads(json.dumps(data, default=_plain))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"{option}{assignment!r}: expected a.b=value, e.g. train.learning_rate=1e-4")
        *parents, last = path.strip().split(".")
        node = data
        for name in parents:
            if node.get(name) is None:
                node[name] = {}
            node = node[name]
            if not isinstance(node, dict):
                raise ConfigError(f"{option}{assignment!r}: {name!r} is a value, not a section")
        node[last] = _parse_yaml(Path(option + path), text)
    return data


def _plain(value: Any) -> Any:
    """A number of numpy as Python's, anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


def _parse_json(path: Path, text: str) -> Any:
    try:
        return parse_json(text, unique=True)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None


def _parse_yaml(path: Path, text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML's safe loader that rejects duplicate keys."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        seen: list[Any] = []
        for key_node, _ in node.value:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float)):
                raise ConfigError(
                    f"{path}:{key_node.start_mark.line + 1}: the key {key!r} is not text; put it in quotes"
                )
            if key in seen:
                raise ConfigError(f"{path}:{key_node.start_mark.line + 1}: the key {key!r} is given twice")
            seen.append(key)
        return loader.construct_mapping(node, deep=True)

    if _depth(text) > YAML_DEPTH:
        raise ConfigError(f"{path}: not valid YAML: nested too deeply, in more than {YAML_DEPTH} brackets")
    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        if _size(yaml.compose(text, Loader)) > YAML_NODES:
            raise ConfigError(f"{path}: its aliases stand for more than {YAML_NODES:,} values; write them out")
        return yaml.load(text, Loader)  # noqa: S506 - Loader derives from SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: nested too deeply") from None
    except (ValueError, TypeError, OverflowError) as error:
        # A value in the form of a number or a date that is none.
        raise ConfigError(f"{path}: not valid YAML: {error}; put text in quotes") from None


def _depth(text: str) -> int:
    """The most brackets that are open at once; the parser's time grows with their square."""
    depth = most = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        most = max(most, depth)
    return most


def _size(root: Any) -> int:
    """Number of values below a node of YAML, those behind aliases counted each time, up to one above ``YAML_NODES``.

    A value that holds itself has no end.
    """
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = YAML_NODES
            below = node.value if isinstance(getattr(node, "value", None), list) else []
            parts = [part for item in below for part in (item if isinstance(item, tuple) else (item,))]
            sizes[id(node)] = min(1 + sum(size(part) for part in parts), YAML_NODES + 1)
        return sizes[id(node)]

    return size(root)
