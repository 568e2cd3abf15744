"""The documentation against the code: help pages, names, snippets, and the strict build."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from itertools import pairwise, takewhile
from pathlib import Path
from textwrap import dedent

import pytest

import knapsack_rl

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = sorted([DOCS / "reference.md", *(DOCS / "reference").glob("*.md")])
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])


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
def test_names_imported_by_path_in_the_documentation_exist(page: Path) -> None:
    """By the text of the module, which may need a framework that is not installed."""
    imports = r"^\s*from (knapsack_(?:rl|arena)\.[\w.]+|knapsack_arena) import (.+)$"
    for module, names in re.findall(imports, page.read_text(encoding="utf-8"), re.MULTILINE):
        path = ROOT / "src" / module.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        assert file.is_file(), f"{page.name} imports from {module}, which does not exist"
        for name in re.findall(r"\w+", names.partition("#")[0]):
            known = re.search(rf"\b{name}\b", file.read_text(encoding="utf-8"))
            assert known, f"{page.name} imports {name} from {module}, which has no such name"


def test_the_snippet_of_the_first_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    snippets = re.findall(r"```python\n(.*?)```", (DOCS / "index.md").read_text(encoding="utf-8"), re.DOTALL)
    for snippet in snippets:
        exec(compile(dedent(snippet), "docs/index.md", "exec"), {})
    first, then = capsys.readouterr().out.splitlines()
    assert first == "{'easy': 8, 'medium': 8, 'hard': 8}"
    assert then != first


@pytest.mark.parametrize("package", ["knapsack_rl", "knapsack_arena"])
def test_the_list_of_folders_is_complete(package: str) -> None:
    listing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition(f"\nsrc/{package}/ ")[2]
    lines = takewhile(lambda line: line.startswith("  "), listing.splitlines()[1:])
    listed = {line.split()[0].rstrip("/") for line in lines}
    files = {path.name for path in (ROOT / "src" / package).glob("*.py")} - {"__init__.py"}
    folders = {path.parent.name for path in (ROOT / "src" / package).glob("*/__init__.py")}
    assert listed == files | folders


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_in_the_documentation_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for target in re.findall(r"`make ([a-z0-9-]+)`", page.read_text(encoding="utf-8")):
        assert target in targets, f"{page.name} mentions `make {target}`"


def test_every_public_name_is_in_the_reference() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in REFERENCE)
    documented = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    for name in set(knapsack_rl.__all__) - {"__version__"}:
        module = getattr(knapsack_rl, name).__module__
        assert module in documented, f"{name} is defined in {module}, which docs/reference/ leaves out"


@pytest.mark.e2e
def test_the_documentation_builds_strictly_and_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    answer = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="?(https?://[^"\s>]+)', page.read_text(encoding="utf-8")
        )
        assert not [url for url in fetched if "canonical" not in url], f"{page.name} would fetch {fetched}"


def test_the_reference_says_of_each_public_name_where_it_is_used() -> None:
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"`(\w+)`", page.partition("| name | used by |")[2].partition("## Session")[0])
    assert set(knapsack_rl.__all__) - {"__version__"} <= set(listed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_table_has_an_empty_header(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    heads = [line for line, under in pairwise(lines) if re.fullmatch(r"\s*\|[\s|:-]*-[\s|:-]*\|\s*", under)]
    assert not [line for line in heads if not line.replace("|", "").strip()]


def test_every_page_of_the_reference_is_in_the_overview_and_in_the_navigation() -> None:
    overview, navigation = (DOCS / "reference.md").read_text(encoding="utf-8"), (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in (DOCS / "reference").glob("*.md"):
        modules = re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert modules, f"{page.name} documents nothing"
        assert f": reference/{page.name}\n" in navigation
        assert f"(reference/{page.name}#" in overview, f"docs/reference.md leaves out {page.name}"
