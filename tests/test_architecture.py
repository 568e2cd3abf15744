"""The structure of the code: what may import what, how large files are, and how fast the core is imported."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

import knapsack_rl

PACKAGE = Path(knapsack_rl.__file__).parent
SOURCE = PACKAGE.parent
FILES = sorted(path for name in ("knapsack_rl", "knapsack_arena") for path in (SOURCE / name).rglob("*.py"))
# What knows numpy only: the root and these folders.
NUMPY_ONLY = ("beliefs", "knapsack", "rules", "testing")
CORE = [
    path
    for path in FILES
    if path.is_relative_to(PACKAGE) and (path.parent == PACKAGE or path.relative_to(PACKAGE).parts[0] in NUMPY_ONLY)
]
LONGEST_FILE, LONGEST_FUNCTION = 400, 60

# One import in a fresh interpreter, timed inside, as the user feels it.
PROBE = """
import json, sys, time
before = set(sys.modules)
began = time.perf_counter()
import {module}
seconds = time.perf_counter() - began
print(json.dumps([seconds, sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})]))
"""


def fresh_import(module: str) -> tuple[float, set[str]]:
    """Seconds, and the top-level modules that came with it."""
    answer = subprocess.run(
        [sys.executable, "-c", PROBE.format(module=module)], capture_output=True, text=True, check=True
    )
    seconds, modules = json.loads(answer.stdout)
    return seconds, set(modules)


def foreign(modules: set[str]) -> set[str]:
    """Those that are neither ours, nor numpy's, nor the standard library's."""
    purelib, platlib = Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("platlib"))
    return {
        name
        for name in modules - {"knapsack_rl", "knapsack_arena", "numpy"} - set(sys.stdlib_module_names)
        if any((folder / name).exists() or (folder / f"{name}.py").exists() for folder in (purelib, platlib))
    }


def name_of(path: Path) -> str:
    """The module of a file."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of every import in a file: at the top, inside functions, for type checkers alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_importing_the_package_needs_numpy_only() -> None:
    _, modules = fresh_import("knapsack_rl")
    assert foreign(modules) == set()
    assert "knapsack_arena" not in modules


def test_importing_the_package_is_fast() -> None:
    # `make bench` measures the figure to live up to, 0.3 s. Here: the best of several, with room for a busy machine.
    assert min(fresh_import("knapsack_rl")[0] for _ in range(4)) < 1.0


def test_the_command_line_starts_without_frameworks() -> None:
    _, modules = fresh_import("knapsack_rl.__main__")
    assert foreign(modules) == set()


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_imports_numpy_and_the_standard_library_only(path: Path) -> None:
    """Also inside functions: the core has no optional framework."""
    allowed = set(sys.stdlib_module_names) | {"numpy", "knapsack_rl"}
    for line, module in imports_of(path):
        assert module.partition(".")[0] in allowed, f"{path}:{line} imports {module}"


def test_the_root_reads_like_the_paper() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert len(modules) <= 12, sorted(modules)


def test_files_and_functions_have_a_size() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= LONGEST_FILE, f"{path} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= LONGEST_FUNCTION, f"{path}:{node.lineno}: {node.name} has {lines} lines"


def test_no_import_goes_in_a_circle() -> None:
    """Imports inside functions and those for type checkers included."""
    modules = {name_of(path): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = {module if module in modules else module.rpartition(".")[0] for _, module in imports_of(path)}
        graph[name] = {module for module in found if module in modules and module != name}
    while leaves := [name for name, imported in graph.items() if not imported]:
        for name in leaves:
            del graph[name]
        for imported in graph.values():
            imported.difference_update(leaves)
    assert graph == {}


def test_a_missing_module_of_ours_fails_and_does_not_skip() -> None:
    pattern = re.compile(r"importorskip\(\s*[\"']knapsack_")
    for path in Path(__file__).parent.rglob("*.py"):
        assert not pattern.search(path.read_text(encoding="utf-8")), f"{path} skips where it should fail"
