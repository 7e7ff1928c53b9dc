"""XML of recordings, read as data: no document type, no entity, nothing fetched, and limits before anything is built.

May live here: what every XML file meets before its reader sees it. What its elements mean is that reader's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, cast
from xml.etree.ElementTree import Element, ParseError, XMLPullParser

from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.words import in_words

__all__ = ["MAX_DEPTH", "MAX_ELEMENTS", "parse_xml"]

MAX_DEPTH: Final = 64
MAX_ELEMENTS: Final = 2_000_000

_STEP: Final = 65536
_FORBIDDEN: Final = re.compile(rb"<!(DOCTYPE|ENTITY)", re.IGNORECASE)
_ENCODING: Final = re.compile(
    rb"""(?:\xef\xbb\xbf)?\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']"""
)
_ENCODINGS: Final = ("utf-8", "us-ascii", "ascii", "iso-8859-1", "iso-8859-15", "windows-1252")
_WIDE: Final = (b"\xff\xfe", b"\xfe\xff", b"<\0", b"\0<")
"""How UTF-16 and UTF-32 begin: what is forbidden would be spelled in other bytes there."""


def parse_xml(data: bytes, where: str, *, max_elements: int = MAX_ELEMENTS) -> Element:
    """The root of a document of the caller's bounded size.

    Raises ScenarioError naming `where` for a document type or entity declaration ("xml-entities"), an encoding of wide
    characters, more than MAX_DEPTH levels or `max_elements` elements, and for what is no XML.
    """
    _check_text(data, where)
    parser: XMLPullParser[Element] = XMLPullParser(("start", "end"))
    depth = elements = 0
    root: Element | None = None
    try:
        for start in range(0, len(data), _STEP):
            parser.feed(data[start : start + _STEP])
            for event, element in cast("Iterator[tuple[str, Element]]", parser.read_events()):
                depth += 1 if event == "start" else -1
                elements += event == "start"
                root = element if root is None else root
                if depth > MAX_DEPTH or elements > max_elements:
                    limit = f"limit {MAX_DEPTH} levels and {max_elements} elements"
                    text = f"{where}: at least {elements} elements and {depth} levels, {limit}"
                    raise ScenarioError("xml-too-large", text)
        parser.close()
    except ParseError as error:
        raise ScenarioError("malformed-xml", f"{where}: expected XML: {in_words(error)}") from error
    if root is None:
        raise ScenarioError(
            "malformed-xml", f"{where}: expected XML, got {len(data)} bytes without an element"
        )
    return root


def _check_text(data: bytes, where: str) -> None:
    if data.startswith(_WIDE):
        raise ScenarioError("malformed-xml", f"{where}: expected UTF-8 or Latin-1 text, got UTF-16 or UTF-32")
    declared = _ENCODING.match(data)
    if declared and declared[1].decode().lower() not in _ENCODINGS:
        text = f"{where}: expected UTF-8 or Latin-1 text, got {declared[1].decode()}"
        raise ScenarioError("malformed-xml", text)
    forbidden = _FORBIDDEN.search(data)
    if forbidden:
        text = f"{where}: expected no document type and no entities, got {forbidden[0].decode()}"
        raise ScenarioError("xml-entities", text)
