"""YAML as a spec wants it: YAML 1.2's plain values, one document, no key twice, counted before it unfolds."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from sweeps.wording import shown

MAX_BYTES = 100_000
MAX_NODES = 100_000  # values after aliases are unfolded
MAX_DEPTH = 50
MAX_DIGITS = 40

TAG = "tag:yaml.org,2002:"
UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class BadYaml(click.ClickException, ValueError):
    """Not readable as a spec; the message is one line."""

    exit_code = 2


# --- plain scalars: the core schema of YAML 1.2 --------------------------------------------------------------------

NULL = re.compile(r"~|null|Null|NULL|")
BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


def _int(text: str) -> int:
    digits = text.lstrip("+-")
    if len(digits) > MAX_DIGITS:
        raise BadYaml(f"a number of {len(digits):,} digits; allowed: at most {MAX_DIGITS}")
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


CORE: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "null": (NULL, lambda text: None),
    "bool": (BOOL, lambda text: text[0] in "tT"),
    "int": (INT, _int),
    "float": (FLOAT, _float),
}


def _scalar(text: str, tag: str | None, plain: bool) -> Any:
    if tag in (None, "!") and not plain:
        return text
    for name, (pattern, read) in CORE.items():
        if tag in (None, TAG + name) and pattern.fullmatch(text):
            return read(text)
    if tag is None or tag in ("!", TAG + "str"):
        return text
    if tag in [TAG + name for name in CORE]:
        raise BadYaml(f"{shown(text)} is no {_tag_name(tag)}; write plain values, without a tag")
    raise _bad_tag(tag)


def _bad_tag(tag: str) -> BadYaml:
    return BadYaml(f"not YAML: tag {_tag_name(tag)} is not allowed; write plain values")


def _tag_name(tag: str) -> str:
    return shown(tag.replace(TAG, "!!")).strip("'\"")


# --- reading -------------------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> Any:
    """The file's content as plain Python values.

    Raises: BadYaml for a file that is missing, larger than MAX_BYTES, or not what `parse_value` reads.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadYaml("no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BadYaml(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_BYTES:
        raise BadYaml(f"larger than {MAX_BYTES:,} bytes")
    try:
        return parse_value(data.decode("utf-8"))
    except UnicodeDecodeError:
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        raise BadYaml(f"not UTF-8 text{' but UTF-16' if wide else ''}; save it as UTF-8") from None


def parse_value(text: str) -> Any:
    """YAML text -> plain values, no two of them the same object.

    Numbers, booleans and null are those of YAML 1.2's core schema: ``010`` is 10, ``0o10`` is 8, ``1e3`` is 1000.0;
    ``yes``, ``1:30``, ``1_000`` and ``2024-01-01`` are texts. Merge keys (``<<``) are read as in YAML 1.1.

    Raises: BadYaml for what is not YAML, several documents, a tag beyond the plain types, a key that is no text or
    stands twice, an alias inside itself, more than MAX_NODES values (aliases unfolded), MAX_DEPTH levels or
    MAX_DIGITS digits.
    """
    if (bad := UNPRINTABLE.search(text)) is not None:
        line = text.count("\n", 0, bad.start()) + 1
        raise BadYaml(f"line {line}: not YAML: character U+{ord(bad.group()):04X} is not allowed in text")
    try:
        return _Reader(yaml.parse(text, Loader=yaml.SafeLoader)).document()
    except yaml.MarkedYAMLError as error:
        at = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise BadYaml(f"{at}not YAML: {' '.join(str(error.problem).split())}") from None
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, BadYaml):
            raise
        raise BadYaml(f"not YAML: {' '.join(str(error).split())[:200]}") from None


Event = Any  # yaml.Event: its types have no common fields


@dataclass(frozen=True)
class _Node:
    """A value with what it adds to the counts: values, levels below it."""

    value: Any
    size: int = 1
    height: int = 0


class _Reader:
    """Parser events -> values. The depth is bounded before the recursion, the size before a copy is made."""

    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events
        self._anchors: dict[str, _Node | None] = {}  # None: still open
        self._size = 0

    def document(self) -> Any:
        next(self._events)  # stream start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._node(next(self._events), 0).value
        next(self._events)  # document end
        if not isinstance(last := next(self._events), yaml.StreamEndEvent):
            raise BadYaml(f"{_line(last)}a second document begins; allowed: one a file")
        return value

    def _node(self, event: Event, depth: int) -> _Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._grow(event, 1, depth)
        if isinstance(event, yaml.ScalarEvent):
            try:
                node = _Node(_scalar(event.value, event.tag, event.implicit[0]))
            except BadYaml as error:
                raise BadYaml(f"{_line(event)}{error}") from None
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(event, depth)
        else:
            node = self._mapping(event, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: Event, depth: int) -> _Node:
        name = event.anchor
        node = self._anchors.get(name)
        if node is None:
            what = "stands inside itself" if name in self._anchors else "is not defined above"
            raise BadYaml(f"{_line(event)}not YAML: alias *{shown(name)[1:-1]} {what}")
        self._grow(event, node.size, depth + node.height)
        return _Node(copy.deepcopy(node.value), node.size, node.height)

    def _grow(self, event: Event, size: int, depth: int) -> None:
        self._size += size
        if self._size > MAX_NODES:
            raise BadYaml(f"{_line(event)}unfolds to more than {MAX_NODES:,} values (aliases of aliases?)")
        if depth > MAX_DEPTH:
            raise BadYaml(f"{_line(event)}nested deeper than {MAX_DEPTH} levels")

    def _sequence(self, start: Event, depth: int) -> _Node:
        _collection_tag(start, "seq")
        items = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        return _whole([item.value for item in items], items)

    def _mapping(self, start: Event, depth: int) -> _Node:
        _collection_tag(start, "map")
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        parts, seen = [], set()
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, depth)
            if key in seen:
                raise BadYaml(f"{_line(event)}key {shown(key)} stands twice")
            seen.add(key)
            parts.append(self._node(next(self._events), depth + 1))
            if key == "<<" and event.implicit[0]:
                merged = _merge(parts[-1].value, event)
            else:
                found[key] = parts[-1].value
        return _whole({**merged, **found}, parts)

    def _key(self, event: Event, depth: int) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            raise BadYaml(f"{_line(event)}a key must be a plain word")
        key = self._node(event, depth + 1).value
        if not isinstance(key, str):
            raise BadYaml(f"{_line(event)}a key must be a plain word, got {shown(key)}")
        return key


def _whole(value: Any, parts: list[_Node]) -> _Node:
    height = 1 + max((part.height for part in parts), default=0)
    return _Node(value, 1 + sum(part.size for part in parts), height)


def _merge(value: Any, event: Event) -> dict[str, Any]:
    mappings = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) for one in mappings):
        raise BadYaml(f"{_line(event)}<< merges a mapping or a list of mappings, got {shown(value)}")
    return {key: item for one in reversed(mappings) for key, item in one.items()}  # the first one counts


def _collection_tag(event: Event, name: str) -> None:
    if event.tag not in (None, "!", TAG + name):
        raise BadYaml(f"{_line(event)}{_bad_tag(event.tag)}")


def _line(event: Event) -> str:
    return f"line {event.start_mark.line + 1}: "


# --- writing -------------------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes every text that YAML 1.1 or 1.2 would read as something else."""


_Dumper.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
for _name, (_pattern, _) in CORE.items():
    _Dumper.add_implicit_resolver(TAG + _name, re.compile(f"(?:{_pattern.pattern})$"), None)


def dump_yaml(value: Any) -> str:
    """Plain values -> YAML text that `parse_value` reads back equal."""
    return yaml.dump(_plain(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
