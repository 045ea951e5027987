"""YAML as the specs want it: safe, finite, YAML 1.2 floats, no key twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1_000_000
MAX_NODES = 200_000
MAX_DEPTH = 50


class BadYaml(ValueError):
    """Not readable as a spec; the message is one line."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number and refuses a key that stands twice."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
        |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
        re.X,
    ),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        if not isinstance(key_node, yaml.ScalarNode):
            raise BadYaml(f"line {key_node.start_mark.line + 1}: a key must be a plain word")
        if key_node.value in seen:
            raise BadYaml(f"line {key_node.start_mark.line + 1}: key {key_node.value!r} stands twice")
        seen.add(key_node.value)
    loader.flatten_mapping(node)
    return dict(loader.construct_pairs(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_yaml(path: Path) -> Any:
    """The file's content as plain Python values.

    Raises: BadYaml for a file that is missing, too large, not UTF-8, not YAML, holds a tag beyond the plain
    types, a key twice, or unfolds (through aliases) to more than MAX_NODES values.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadYaml("no such file") from None
    except OSError as error:
        raise BadYaml(f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise BadYaml(f"larger than {MAX_BYTES:,} bytes")
    try:
        return parse_value(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadYaml("not UTF-8 text") from None


def parse_value(text: str) -> Any:
    """YAML text -> plain values. Raises: BadYaml."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise BadYaml(f"{line}not YAML: {error.problem}".replace("\n", " ")) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, BadYaml):
            raise
        raise BadYaml(f"not YAML: {' '.join(str(error).split())[:200]}") from None
    _count(value, 0, 0)
    return value


def _count(value: Any, nodes: int, depth: int) -> int:
    # Aliases share objects in memory but not in a grid: count what they unfold to.
    if depth > MAX_DEPTH:
        raise BadYaml(f"nested deeper than {MAX_DEPTH} levels")
    nodes += 1
    if nodes > MAX_NODES:
        raise BadYaml(f"unfolds to more than {MAX_NODES:,} values (aliases of aliases?)")
    if isinstance(value, dict):
        for key, item in value.items():
            nodes = _count(item, _count(key, nodes, depth + 1), depth + 1)
    elif isinstance(value, list):
        for item in value:
            nodes = _count(item, nodes, depth + 1)
    return nodes


def dump_yaml(value: Any) -> str:
    """Plain values -> YAML text that `parse_value` reads back equal."""
    return yaml.dump(_plain(value), Dumper=yaml.SafeDumper, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
