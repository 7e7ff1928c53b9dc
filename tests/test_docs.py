"""The pages that are made from code are those that the code makes now, and the links between pages lead somewhere."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from fedfleet.cli.reference import reference
from fedfleet.fleet_server.gauges import TABLE

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_reference_is_fresh() -> None:
    assert (ROOT / "docs/cli.md").read_text(encoding="utf-8") == reference(), "stale: run `make docs`"


def test_the_picture_of_the_round_is_drawn_from_its_table() -> None:
    page = (ROOT / "docs/protocol.md").read_text(encoding="utf-8")
    assert page == script("make_states").drawn(page), "stale: run `make docs`"


def test_the_table_of_metrics_is_that_of_the_server_and_alerts_name_only_what_is_in_it() -> None:
    page = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
    assert page == script("make_monitoring").drawn(page), "stale: run `make docs`"
    named = {name.removesuffix("_bucket") for name in re.findall(r"fedfleet_[a-z_]+", page)}
    assert named == set(TABLE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_names_every_make_target_that_it_uses() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(
        r"^make ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    ):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
