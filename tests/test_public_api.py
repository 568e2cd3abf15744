"""The public names: exact, sorted, documented; and the version, which several files mention."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
from pathlib import Path

import knapsack_rl

ROOT = Path(__file__).parents[1]
DATA = {"__version__"}


def test_all_is_sorted_and_exact() -> None:
    names = list(knapsack_rl.__all__)
    assert names == sorted(set(names))
    modules = {name for name, value in vars(knapsack_rl).items() if inspect.ismodule(value)}
    found = {name for name in vars(knapsack_rl) if not name.startswith("_") and name != "annotations"} - modules
    assert found == set(names) - DATA


def test_every_public_name_is_documented() -> None:
    for name in set(knapsack_rl.__all__) - DATA:
        value = getattr(knapsack_rl, name)
        assert inspect.getdoc(value), f"{name} has no docstring"
        if inspect.isclass(value):
            for member, attribute in vars(value).items():
                if not member.startswith("_") and callable(attribute):
                    assert inspect.getdoc(attribute), f"{name}.{member} has no docstring"


def test_the_version_is_the_same_everywhere() -> None:
    version = knapsack_rl.__version__
    assert importlib.metadata.version("knapsack-rl") == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


def test_type_information_is_shipped() -> None:
    assert (Path(knapsack_rl.__file__).parent / "py.typed").exists()
