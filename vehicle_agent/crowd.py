"""What many vehicles of one process say at once, said by a few: a thousand lines of the same tell no more than one."""

from collections.abc import Callable

__all__ = ["SPEAKERS", "Crowd"]

SPEAKERS = 3
"""So many vehicles say the same; then one line says that others do too."""
WITHIN_S = 600.0
MOST_TEXTS = 1000


class Crowd:
    """Hands lines on. A line ``vehicle NAME: TEXT`` is held back when others have just said that TEXT."""

    def __init__(self, report: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._report, self._clock = report, clock
        self._said: dict[str, tuple[float, set[str]]] = {}

    def __call__(self, line: str) -> None:
        """Report the line, or count it."""
        who, _, text = line.partition(": ")
        if not who.startswith("vehicle ") or not text:
            self._report(line)
            return
        text, now_s = text.replace(who.removeprefix("vehicle "), "…"), self._clock()
        since_s, names = self._said.pop(text, (now_s, set()))
        if now_s - since_s > WITHIN_S:
            since_s, names = now_s, set()
        if who in names or len(names) < SPEAKERS:
            self._report(line)
        elif len(names) == SPEAKERS:
            self._report(f"more vehicles: {text}")
        names.add(who)
        self._said[text] = (since_s, names)
        while len(self._said) > MOST_TEXTS:
            del self._said[next(iter(self._said))]
