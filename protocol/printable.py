"""Text that others wrote, as it may be shown: what a terminal or a page would obey becomes visible instead."""

__all__ = ["printable"]

_WORDS = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str, *, keep: str = "") -> str:
    """Return the text in one line that shows all of itself; characters in ``keep`` stay as they are.

    Whatever `str.isprintable` is not sure of is written as an escape: control characters (a terminal's escape
    sequences begin with one), line breaks, marks that turn the direction of writing, invisible characters, and the
    halves that Python makes of bytes in file names that are not UTF-8. Other text, of any script, stays.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else _escape(one) for one in text)


def _escape(character: str) -> str:
    number = ord(character)
    if character in _WORDS:
        return _WORDS[character]
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
