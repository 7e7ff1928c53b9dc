"""Names of places and trips in recordings as the ids that regions and drives have: `DR_USA_EP0` is `dr-usa-ep0`.

May live here: how a publisher's name becomes an id. Which name is the region is the reader's business.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Final

__all__ = ["place_id"]

MAX_CHARS: Final = 36
_OTHER: Final = re.compile(r"[^a-z0-9]+")


def place_id(name: str) -> str:
    """The name in lower case without accents, hyphens for all else, of 1 to 36 characters; of a longer one its hash."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    found = _OTHER.sub("-", plain).strip("-")
    if found and len(found) <= MAX_CHARS:
        return found
    mark = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{found[: MAX_CHARS - 7].rstrip('-') or 'place'}-{mark}"
