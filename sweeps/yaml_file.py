"""YAML as a spec wants it: YAML 1.2's plain values, one document, no key twice, counted before it unfolds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml

from cluster import secrets
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


def _int(text: str) -> int:
    digits = text.lstrip("+-")
    if len(digits) > MAX_DIGITS:
        raise BadYaml(f"a number of {len(digits):,} digits; allowed: at most {MAX_DIGITS}")
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


DIGITS = r"\.[0-9]+|[0-9]+(?:\.[0-9]*)?"
CORE: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "null": (re.compile(r"~|null|Null|NULL|"), lambda text: None),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text[0] in "tT"),
    "int": (re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), _int),
    "float": (re.compile(rf"[-+]?(?:{DIGITS})(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"), _float),
}


# --- reading -------------------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> Any:
    """The file's content as plain Python values.

    Raises: BadYaml for a file that is missing, larger than MAX_BYTES, with a secret, or not what `parse_value` reads.
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
        text = data.decode("utf-8")
        refuse_secret(text)
        return parse_value(text)
    except UnicodeDecodeError:
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        raise BadYaml(f"not UTF-8 text{' but UTF-16' if wide else ''}; save it as UTF-8") from None


def refuse_secret(text: str) -> None:
    """Raises: BadYaml where a text holds a secret: a study is written into run folders, reports and W&B."""
    if (held := secrets.found(text)) is not None:
        raise BadYaml(f"holds {held[0]} (line {held[1]}), and a study is shown in clear; leave it to the environment")


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
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        at = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise BadYaml(f"{at}not YAML: {' '.join(str(error.problem).split())}") from None
    return None if node is None else _Values().of(node)


class _Loader(yaml.SafeLoader):
    """Text -> nodes, of bounded depth, an anchor's last definition counting; tags as YAML 1.2 resolves them."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        None: [(TAG + name, re.compile(rf"(?:{p.pattern})\Z")) for name, (p, _) in CORE.items()]
    }
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if not isinstance(event, yaml.AliasEvent):
            self.anchors.pop(event.anchor, None)
            if isinstance(event, yaml.ScalarEvent) and event.tag == "!":
                event.tag = f"{TAG}str"
        self.depth += 1
        if self.depth > MAX_DEPTH + 1:
            raise _bad(event, TOO_DEEP)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"


class _Values:
    """Nodes -> values, aliases unfolded; size and depth are bounded before anything is made."""

    def __init__(self) -> None:
        self._left = MAX_NODES
        self._open: list[Any] = []  # the nodes around

    def of(self, node: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise _bad(node, f"unfolds to more than {MAX_NODES:,} values (aliases of aliases?)")
        if node in self._open:
            raise _bad(node, "not YAML: an alias stands inside itself")
        if len(self._open) > MAX_DEPTH:
            raise _bad(node, TOO_DEEP)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        kind = "seq" if isinstance(node, yaml.SequenceNode) else "map"
        if node.tag != TAG + kind:
            raise _bad_tag(node)
        self._open.append(node)
        value = [self.of(item) for item in node.value] if kind == "seq" else self._mapping(node)
        self._open.pop()
        return value

    def _mapping(self, node: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        seen = set()
        for key_node, item in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _bad(key_node, "a key must be a plain word")
            key = self.of(key_node)
            if not isinstance(key, str):
                raise _bad(key_node, f"a key must be a plain word, got {shown(key)}")
            if key in seen:
                raise _bad(key_node, f"key {shown(key)} stands twice")
            seen.add(key)
            if key == "<<" and key_node.style is None:
                merged = _merge(self.of(item), key_node)
            else:
                found[key] = self.of(item)
        return {**merged, **found}


def _scalar(node: Any) -> Any:
    name = node.tag.removeprefix(TAG)
    if name == "str":
        return node.value
    if name not in CORE:
        raise _bad_tag(node)
    pattern, read = CORE[name]
    if pattern.fullmatch(node.value) is None:
        raise _bad(node, f"{shown(node.value)} is no {_tag_name(node)}; write plain values, without a tag")
    try:
        return read(node.value)
    except BadYaml as error:
        raise _bad(node, str(error)) from None


def _merge(value: Any, node: Any) -> dict[str, Any]:
    mappings = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) for one in mappings):
        raise _bad(node, f"<< merges a mapping or a list of mappings, got {shown(value)}")
    return {key: item for one in reversed(mappings) for key, item in one.items()}  # the first one counts


def _bad(at: Any, said: str) -> BadYaml:
    return BadYaml(f"line {at.start_mark.line + 1}: {said}")


def _bad_tag(node: Any) -> BadYaml:
    return _bad(node, f"not YAML: tag {_tag_name(node)} is not allowed; write plain values")


def _tag_name(node: Any) -> str:
    return shown(node.tag.replace(TAG, "!!")).strip("'\"")


# --- writing -------------------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else; writes what stands twice twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        **yaml.SafeDumper.yaml_implicit_resolvers,
        **_Loader.yaml_implicit_resolvers,
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump_yaml(value: Any) -> str:
    """Plain values -> YAML text that `parse_value` reads back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
