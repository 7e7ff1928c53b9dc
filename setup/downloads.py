"""Reads pip's installation reports (`pip install --dry-run --report`): what would come, and how large.

`downloads.py brings-cuda REPORT`: exit 0 when the first package needs the CUDA libraries here, else 1.
`downloads.py sizes REPORT`: print number and size of the packages, the largest by name.
`downloads.py names REPORT`: print the names of the packages that are fetched, but for torch.
`downloads.py locked-torch REPORT LOCK`: exit 0 when the report fetches no torch, or one whose hash is in the lock.
"""

import json
import os
import re
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CUDA = ("nvidia-", "cuda-", "triton")
MEGABYTE = 1_000_000


def brings_cuda(package: Mapping[str, Any]) -> bool:
    """Whether this package requires CUDA libraries on this machine (markers are evaluated)."""
    required = [Requirement(text) for text in package["metadata"].get("requires_dist", [])]
    return any(
        each.name.startswith(CUDA) and (each.marker is None or each.marker.evaluate({"extra": ""}))
        for each in required
    )


def size_bytes(url: str) -> int | None:
    """The size of the file at this address, asked for without reading it; None when unknown."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        path = Path(urllib.request.url2pathname(parts.path))
        return path.stat().st_size if path.is_file() else None
    if parts.scheme not in {"http", "https"}:
        return None
    authorities = os.environ.get("PIP_CERT") or os.environ.get("REQUESTS_CA_BUNDLE")
    context = ssl.create_default_context(cafile=authorities)
    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - http and https only, above
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:  # noqa: S310
            return int(answer.headers["Content-Length"])
    except (urllib.error.URLError, TimeoutError, TypeError, ValueError):
        return None


def sizes(packages: Sequence[Mapping[str, Any]]) -> str:
    """One line: how many packages, how many megabytes, the largest four."""
    names = [f"{each['metadata']['name']} {each['metadata']['version']}" for each in packages]
    with ThreadPoolExecutor(max_workers=8) as pool:
        found = list(pool.map(size_bytes, (each["download_info"]["url"] for each in packages)))
    known = sorted(((size, name) for size, name in zip(found, names, strict=True) if size), reverse=True)
    total = sum(size for size, _ in known)
    largest = ", ".join(f"{name} {size / MEGABYTE:.0f} MB" for size, name in known[:4])
    unknown = len(packages) - len(known)
    more = f", {unknown} of unknown size" if unknown else ""
    fetched = f"{len(packages)} packages, {total / MEGABYTE:.0f} MB to fetch{more}"
    return f"{fetched}; largest: {largest or 'unknown'}"


def names(packages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The canonical names of the packages, sorted; torch is installed by itself."""
    found = (canonicalize_name(each["metadata"]["name"]) for each in packages)
    return sorted(name for name in found if name != "torch")


def sha256_of(package: Mapping[str, Any]) -> str:
    """The hash of the file that is fetched; empty when neither the report nor the disk tells it."""
    fetched = package["download_info"]
    told = fetched.get("archive_info", {}).get("hashes", {}).get("sha256", "")
    parts = urllib.parse.urlsplit(fetched["url"])
    path = Path(urllib.request.url2pathname(parts.path))
    if not told and parts.scheme == "file" and path.is_file():
        return sha256(path.read_bytes()).hexdigest()
    return str(told)


def is_locked_torch(packages: Sequence[Mapping[str, Any]], lock: str) -> bool:
    """Whether no torch is fetched, or a file that the lock names by its hash."""
    known = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", lock))
    torch = [each for each in packages if canonicalize_name(each["metadata"]["name"]) == "torch"]
    return all(sha256_of(each) in known for each in torch)


def main(command: str, report: str, lock: str = "") -> int:
    """Run one of the commands on a report; return the exit status."""
    packages = json.loads(Path(report).read_text(encoding="utf-8"))["install"]
    if command == "brings-cuda":
        return 0 if packages and brings_cuda(packages[0]) else 1
    # Our own folder is in the report as well: it is not fetched.
    packages = [each for each in packages if "dir_info" not in each["download_info"]]
    if command == "locked-torch":
        return 0 if is_locked_torch(packages, Path(lock).read_text(encoding="utf-8")) else 1
    if command == "names":
        print(" ".join(names(packages)))
    elif packages:
        print(f"setup: {sizes(packages)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
