"""Names of places and trips in recordings as the ids that regions and drives have: `DR_USA_EP0` is `dr-usa-ep0`.

May live here: how a publisher's name becomes an id, and how two names that would become the same one are told apart.
Which name is the region is the reader's business.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["MAX_CHARS", "place_id", "place_ids"]

MAX_CHARS: Final = 36
_OTHER: Final = re.compile(r"[^a-z0-9]+")
_MARK_CHARS: Final = 6


def place_id(name: str, *, max_chars: int = MAX_CHARS) -> str:
    """The name in lower case without accents, hyphens for all else, of 1 to 36 characters; of a longer one its hash."""
    found = _folded(name)
    return found if found and len(found) <= max_chars else _marked(found or "place", name, max_chars)


def place_ids(names: Iterable[str], *, max_chars: int = MAX_CHARS) -> Mapping[str, str]:
    """The id of each name, another one for each: names that fold to one id all get a hash of the name behind it.

    A name that is that id itself keeps it. So `Monday` beside `monday` is `monday-3f2a1c`, in whatever order they come.
    """
    by_id: dict[str, set[str]] = defaultdict(set)
    given: dict[str, str] = {}
    for name in names:
        given[name] = unicodedata.normalize("NFC", name)
        by_id[place_id(name, max_chars=max_chars)].add(given[name])
    found = {}
    for name, composed in given.items():
        short = place_id(name, max_chars=max_chars)
        is_alone = len(by_id[short]) == 1 or composed == short
        found[name] = short if is_alone else _marked(_folded(name), composed, max_chars)
    return found


def _folded(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return _OTHER.sub("-", plain).strip("-")


def _marked(found: str, name: str, max_chars: int) -> str:
    mark = hashlib.sha256(unicodedata.normalize("NFC", name).encode()).hexdigest()[:_MARK_CHARS]
    return f"{found[: max_chars - _MARK_CHARS - 1].rstrip('-') or 'place'}-{mark}"
