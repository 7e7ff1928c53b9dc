"""Words for a folder in which a task finds nothing to read: what is there, and where to look instead."""

from __future__ import annotations

from collections import Counter

from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.account import Account
from fedfleet.scenarios.donkey_files import MANIFEST
from fedfleet.scenarios.tree import Tree

__all__ = ["nothing_found"]

_INSIDE: tuple[tuple[str, str], ...] = (
    (MANIFEST, "a Donkey tub"),
    (".zgroup", "a zarr store"),
    (".zattrs", "a zarr store"),
    ("label_02", "a KITTI folder"),
    ("global_pose", "a comma2k19 segment"),
)


def nothing_found(tree: Tree, account: Account) -> UsageError:
    """The error for it: the first refusal where files were refused, else what is there and a hint."""
    worst = account.worst
    if worst is not None and worst.kind == "refused":
        left = len(account.rows) + account.more.total() - 1
        more = f" (and {left} more of this folder)" if left else ""
        return UsageError(f"{worst.text}{more}")
    up = next((what for name, what in _INSIDE if (tree.folder.resolve().parent / name).exists()), None)
    if up is not None:
        hint = f"it lies in {up}: give the folder one level up, or two"
    else:
        hint = "`fedfleet scenarios formats` lists what is read"
    if not account.rows:
        return UsageError(f"{tree.folder}: no recordings: an empty folder; {hint}")
    counted = Counter(account.counts)
    reasons = ", ".join(f"{count} × {reason}" for reason, count in counted.most_common(4))
    foreign = [row for row in account.rows if row.reason == "other-task"]
    text = (foreign or account.rows)[0].detail
    return UsageError(f"{tree.folder}: no recordings: {reasons}: {text}; {hint}")
