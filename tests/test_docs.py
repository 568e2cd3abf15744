"""Documentation that cannot lie: the help pages, the names, and the strict build."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import knapsack_rl

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse lays its help out differently from Python 3.13 on")
def test_the_help_page_is_what_the_command_prints() -> None:
    spec = importlib.util.spec_from_file_location("generate_cli", DOCS / "generate_cli.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == generator.page(), "run: python docs/generate_cli.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_imported_in_the_documentation_exist(page: Path) -> None:
    for line in re.findall(r"^\s*from knapsack_rl import (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        for name in re.findall(r"\w+", line.partition("#")[0]):
            assert name in knapsack_rl.__all__, f"{page.name} imports {name}, which is not public"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_in_the_documentation_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for target in re.findall(r"`make ([a-z0-9-]+)`", page.read_text(encoding="utf-8")):
        assert target in targets, f"{page.name} mentions `make {target}`"


def test_every_public_name_is_in_the_reference() -> None:
    documented = set(
        re.findall(r"^::: knapsack_rl\.(\w+)", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for name in set(knapsack_rl.__all__) - {"__version__"}:
        module = getattr(knapsack_rl, name).__module__.removeprefix("knapsack_rl.")
        assert module in documented, f"{name} is defined in {module}, which docs/reference.md leaves out"


@pytest.mark.e2e
def test_the_documentation_builds_strictly_and_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    answer = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    for page in tmp_path.glob("*.html"):
        fetched = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text(encoding="utf-8")
        )
        assert not [url for url in fetched if "canonical" not in url], f"{page.name} would fetch {fetched}"
