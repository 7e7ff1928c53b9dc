"""The account of a folder: what of it is not read, and why. What is neither read nor here does not exist.

A reader refuses what is not as it must be, file by file; what no reader claims is listed. One bad file so costs itself,
not its folder, and nothing is left out in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from fedfleet.scenarios.impostors import by_content
from fedfleet.scenarios.records import ScenarioError

__all__ = ["MAX_ROWS", "STRICT", "Account", "Row"]

MAX_ROWS: Final = 10_000


@dataclass(frozen=True)
class Row:
    """One file, member, drive or group of files that is not read: `refused` by its reader, or `unclaimed` by all."""

    path: str
    kind: Literal["refused", "unclaimed"]
    reason: str
    detail: str
    files: int = 1

    @property
    def text(self) -> str:
        """One line: reason, path, what is wrong."""
        return f"{self.reason}: {self.detail}"


@dataclass(eq=False)
class Account:
    """What was left out of a folder so far, each path once for each reason; beyond MAX_ROWS rows it only counts."""

    folder: Path
    is_strict: bool = False
    rows: list[Row] = field(default_factory=list)
    more: Counter[str] = field(default_factory=Counter)
    known: set[tuple[str, str, str]] = field(default_factory=set, repr=False)

    @contextmanager
    def refusing(self, *paths: str) -> Iterator[None]:
        """Turn a ScenarioError within the block into a row for these paths; a strict account lets it pass."""
        try:
            yield
        except ScenarioError as error:
            self.refuse(error, *paths)

    def refuse(self, error: ScenarioError, *paths: str) -> None:
        """Add what a reader refused; a web page or an empty file in a recording's place is called that."""
        if self.is_strict:
            raise error
        reason, detail = error.reason, error.detail
        for path in paths:
            instead = by_content(self.folder / path) if (self.folder / path).is_file() else None
            if instead is not None:
                reason, detail = instead[0], f"{path} {instead[1]}"
                break
        self._add(Row(", ".join(paths), "refused", reason, detail, len(paths)))

    def leave(self, path: str, reason: str, detail: str, *, files: int = 1) -> None:
        """Add what nobody claims; `detail` goes on after the path (`is empty`)."""
        if not self.is_strict:
            self._add(Row(path, "unclaimed", reason, f"{path} {detail}", files))

    def _add(self, row: Row) -> None:
        key = (row.path, row.reason, row.detail)
        if key in self.known:
            return
        if len(self.rows) >= MAX_ROWS:
            self.more[row.reason] += row.files
            return
        self.known.add(key)
        self.rows.append(row)

    @property
    def counts(self) -> dict[str, int]:
        """Files by reason, the most first."""
        counted = self.more.copy()
        for row in self.rows:
            counted[row.reason] += row.files
        return dict(counted.most_common())

    @property
    def worst(self) -> Row | None:
        """The row to stop with where nothing is left: the first refusal, else the first that nobody claims."""
        refused = [row for row in self.rows if row.kind == "refused"]
        return next(iter([*refused, *self.rows]), None)

    @property
    def sentence(self) -> str:
        """One line for who asked for something else: how much is not read, why, and who tells more; "" for none."""
        counts = self.counts
        if not counts:
            return ""
        some = ", ".join(f"{count} × {reason}" for reason, count in [*counts.items()][:4])
        more = ", …" if len(counts) > 4 else ""
        ask = f"`fedfleet scenarios check --scenarios {self.folder}` names them"
        count = sum(counts.values())
        files = "1 file" if count == 1 else f"{count} files"
        return f"{files} in {self.folder} {'is' if count == 1 else 'are'} not read ({some}{more}): {ask}"

    def lines(self, most: int) -> list[str]:
        """Up to so many rows as one line each, and how many more there are."""
        shown = [row.text for row in self.rows[:most]]
        left = len(self.rows) - len(shown) + self.more.total()
        return [*shown, f"and {left} more"] if left else shown

    def summary(self) -> Sequence[dict[str, object]]:
        """The rows as plain values."""
        return [
            {
                "path": row.path,
                "kind": row.kind,
                "reason": row.reason,
                "detail": row.detail,
                "files": row.files,
            }
            for row in self.rows
        ]


STRICT: Final = Account(Path(), is_strict=True)
"""Raises what a reader refuses: for callers that want all of a folder or nothing."""
