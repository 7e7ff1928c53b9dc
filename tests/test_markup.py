"""XML as data: what is refused before a reader sees it."""

import pytest

from fedfleet.scenarios.markup import MAX_DEPTH, parse_xml
from fedfleet.scenarios.records import ScenarioError

BOMB = b"""<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;&lol;&lol;&lol;&lol;&lol;&lol;">]>
<OpenSCENARIO>&lol2;</OpenSCENARIO>"""


def test_a_document_is_read_whole() -> None:
    # Given a document longer than one step of the parser
    items = "".join(f"<item n='{i}'/>" for i in range(20_000))
    # When it is parsed
    root = parse_xml(f"<list>{items}</list>".encode(), "a.xml")
    # Then nothing of it is missing
    assert [each.get("n") for each in root] == [str(i) for i in range(20_000)]


@pytest.mark.parametrize(
    ("data", "reason", "text"),
    [
        (BOMB, "xml-entities", "a.xml: expected no document type and no entities, got <!DOCTYPE"),
        (BOMB.replace(b"DOCTYPE", b"doctype"), "xml-entities", "got <!doctype"),
        (BOMB.decode().encode("utf-16"), "malformed-xml", "expected UTF-8 or Latin-1 text"),
        (BOMB.decode().encode("utf-16-le"), "malformed-xml", "expected UTF-8 or Latin-1 text"),
        (b'<?xml version="1.0" encoding="cp037"?><a/>', "malformed-xml", "got cp037"),
        (b"<a>&lol;</a>", "malformed-xml", "undefined entity"),
        (b"<a><b></a>", "malformed-xml", "mismatched tag"),
        (b"<a><b>", "malformed-xml", "it ends too early"),
        (b"", "malformed-xml", "a.xml"),
        (b"<a>" * (MAX_DEPTH + 1), "xml-too-large", f"65 levels, limit {MAX_DEPTH} levels"),
    ],
)
def test_what_is_no_plain_document_is_refused(data: bytes, reason: str, text: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        parse_xml(data, "a.xml")
    assert refused.value.reason == reason
    assert text in str(refused.value)


def test_a_document_of_too_many_elements_is_refused() -> None:
    with pytest.raises(
        ScenarioError, match="at least 11 elements and 2 levels, limit 64 levels and 10 elements"
    ):
        parse_xml(b"<a>" + b"<b/>" * 11 + b"</a>", "a.xml", max_elements=10)
