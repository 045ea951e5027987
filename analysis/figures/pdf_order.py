"""One PDF for one drawing: svg2pdf lists resources and numbers fonts in an order of chance.

Objects are numbered anew as they are reached from the catalogue, lists of resources sorted by name. Nothing else
changes. Source: ISO 32000-1, 7.5 (file structure): numbers and offsets of objects carry no meaning of their own.
"""

from __future__ import annotations

import re

_LIST = re.compile(rb"(?:^ *+/[A-Za-z]+\d+ \d+ 0 R\r?\n){2,}", re.MULTILINE)
_REFERENCE = re.compile(rb"\b(\d+) 0 R\b")


def in_order(pdf: bytes) -> bytes:
    """The same document with objects and resources in an order of their own. Raises: ValueError for no such PDF."""
    header, objects, trailer = _read(pdf)
    order: list[int] = []
    for number in _references(trailer):
        _reach(number, objects, order)
    new = {old: place for place, old in enumerate(order, start=1)}
    out = bytearray(header)
    offsets = []
    for old in order:
        offsets.append(len(out))
        entries, stream = objects[old]
        out += b"%d 0 obj\n" % new[old] + _renumbered(entries, new) + stream
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f\r\n" % (len(offsets) + 1)
    out += b"".join(b"%010d 00000 n\r\n" % offset for offset in offsets)
    trailer = re.sub(rb"/Size \d+", b"/Size %d" % (len(offsets) + 1), _renumbered(trailer, new))
    out += b"trailer\n%s\nstartxref\n%d\n%%%%EOF" % (trailer.strip(), start)
    return bytes(out)


def _read(pdf: bytes) -> tuple[bytes, dict[int, tuple[bytes, bytes]], bytes]:
    """What stands before the objects, number -> (entries sorted, stream and all that follows), the trailer."""
    start = re.search(rb"startxref\s+(\d+)\s+%%EOF\s*$", pdf)
    table = re.compile(rb"xref\s+0 (\d+)\s+((?:\d{10} \d{5} [fn]\s+)+)trailer\s+(<<.*?>>)\s+startxref", re.DOTALL)
    found = table.match(pdf, int(start[1])) if start else None
    if start is None or found is None:
        raise ValueError("not a PDF with one plain cross-reference table")
    rows = found[2].split()
    offsets = {number: int(rows[3 * number]) for number in range(int(found[1])) if rows[3 * number + 2] == b"n"}
    ends = sorted([*offsets.values(), int(start[1])])
    objects = {}
    for number, offset in offsets.items():
        whole = pdf[offset : ends[ends.index(offset) + 1]]
        body = re.sub(rb"\A\d+ 0 obj\s", b"", whole)
        entries, mark, stream = body.partition(b"stream\n")  # of a stream's bytes nothing is read
        if not mark:
            entries, mark, stream = body.partition(b"endobj")
        ordered = _LIST.sub(lambda match: b"".join(sorted(match[0].splitlines(keepends=True))), entries)
        objects[number] = (ordered, mark + stream)
    return pdf[: ends[0]], objects, found[3]


def _reach(first: int, objects: dict[int, tuple[bytes, bytes]], order: list[int]) -> None:
    """Adds to `order` what can be reached from an object, itself first, depth first."""
    seen, waiting = set(order), [first]
    while waiting:
        number = waiting.pop()
        if number not in seen:
            seen.add(number)
            order.append(number)
            waiting += reversed(_references(objects[number][0]))


def _references(entries: bytes) -> list[int]:
    return [int(number) for number in _REFERENCE.findall(entries)]


def _renumbered(entries: bytes, new: dict[int, int]) -> bytes:
    return _REFERENCE.sub(lambda match: b"%d 0 R" % new[int(match[1])], entries)
