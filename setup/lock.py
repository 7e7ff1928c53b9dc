"""Writes requirements.lock: every pin of constraints.txt with the SHA-256 of its files, as the index tells them.

`lock.py [WHEEL …]`: run it after constraints.txt has changed. A WHEEL is a file that the index does not have, a CPU
build of torch for example: its hash is added to those of its package. The index is the one that pip is set to.
"""

import hashlib
import json
import os
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
HEAD = """\
# Made by setup/lock.py from constraints.txt: what `make setup` and CI install, by version and SHA-256.
"""


def pins(text: str) -> Iterator[tuple[str, str]]:
    """The pins (name, version) of a constraints file."""
    for line in text.splitlines():
        pin = line.partition("#")[0].strip()
        if pin:
            name, _, version = pin.partition("==")
            yield canonicalize_name(name), version


def version_of(file: str) -> Version | None:
    """The version that a file of an index is of, without its local part; None for a file of another kind."""
    try:
        found = parse_wheel_filename(file)[1] if file.endswith(".whl") else parse_sdist_filename(file)[1]
    except ValueError:
        return None
    return Version(found.public)


def hashes(index: str, name: str, version: str) -> set[str]:
    """The SHA-256 of all files of this release."""
    accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
    request = urllib.request.Request(f"{index.rstrip('/')}/{name}/", headers=accept)  # noqa: S310 - https, from pip
    context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT"))
    with urllib.request.urlopen(request, timeout=60, context=context) as answer:  # noqa: S310 - as above
        files = json.load(answer)["files"]
    wanted = Version(version)
    return {each["hashes"]["sha256"] for each in files if version_of(each["filename"]) == wanted}


def main(wheels: list[str]) -> int:
    """Write the lock; return the exit status."""
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    index = os.environ.get("PIP_INDEX_URL") or told or "https://pypi.org/simple"
    wanted = list(pins((ROOT / "constraints.txt").read_text(encoding="utf-8")))
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = list(pool.map(lambda pin: hashes(index, *pin), wanted))
    for wheel in map(Path, wheels):
        name, version = canonicalize_name(parse_wheel_filename(wheel.name)[0]), version_of(wheel.name)
        at = [(each, Version(pinned)) for each, pinned in wanted].index((name, version))
        found[at].add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    lines = [HEAD]
    for (name, version), known in zip(wanted, found, strict=True):
        if not known:
            print(f"lock: the index has no file of {name} {version}", file=sys.stderr)
            return 1
        each = [f"    --hash=sha256:{digest}" for digest in sorted(known)]
        lines.append(" \\\n".join([f"{name}=={version}", *each]) + "\n")
    LOCK.write_text("".join(lines), encoding="utf-8")
    print(f"lock: {len(wanted)} packages, {sum(map(len, found))} files")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
