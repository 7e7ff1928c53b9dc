"""Links .view/fedfleet/<folder> to every folder that pyproject.toml maps, for type checkers and editors."""

import shutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Make the view anew, so that a removed package leaves it too."""
    mapping = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    view = ROOT / ".view" / "fedfleet"
    shutil.rmtree(view, ignore_errors=True)
    view.mkdir(parents=True)
    for package, folder in mapping.items():
        # Sub-packages come with the link of their parent.
        if package.count(".") == 1:
            (view / package.removeprefix("fedfleet.")).symlink_to(Path("../..") / folder)


if __name__ == "__main__":
    main()
