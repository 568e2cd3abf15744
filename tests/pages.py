"""Blocks of documentation pages, and what a reader would do with them.

A fenced block of Python or shell is run as it is written, unless a comment directly above it says otherwise:

    <!-- not run: REASON -->   needs what a test cannot have: a network, a GPU
    <!-- slow -->              in the heavy tests only
    <!-- exits with N -->      a command that is shown because it fails
    <!-- printed -->           above a block of text: what the block before prints, or lines of it

A Python block with ``title="NAME"`` is a file.
"""

from __future__ import annotations

import ast
import re
import symtable
from collections.abc import Iterator
from dataclasses import dataclass

_BLOCK = re.compile(
    r"^(?P<marks>(?: *<!--[^\n]*-->\n)*)(?P<indent> *)```(?P<language>\w+)(?P<info>[^\n]*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        line: where it begins in its page.
        language: of its fence.
        title: the file that it is; None if it is none.
        marks: the comments above it.
        text: its content, without the indentation of the fence.
    """

    line: int
    language: str
    title: str | None
    marks: tuple[str, ...]
    text: str

    def mark(self, name: str) -> str | None:
        """What follows ``name`` in a comment above the block; None without one."""
        return next((mark[len(name) :].strip(": ") for mark in self.marks if mark.startswith(name)), None)


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    for found in _BLOCK.finditer(page):
        indent = len(found["indent"])
        title = re.search(r'title="([^"]+)"', found["info"])
        yield Block(
            line=page[: found.start("language")].count("\n") + 1,
            language=found["language"],
            title=title[1] if title else None,
            marks=tuple(re.findall(r"<!-- *(.*?) *-->", found["marks"])),
            text="".join(line[indent:] or "\n" for line in found["text"].splitlines(keepends=True)),
        )


def commands(shell: str) -> list[str]:
    """The commands of a shell block, one a line, continued lines joined, comments dropped."""
    lines = re.sub(r"\\\n\s*", " ", shell).splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line]


def missing_names(python: str) -> set[str]:
    """Names that a snippet uses and does not define: what its reader has already."""
    table = symtable.symtable(python, "snippet", "exec")
    tables = [table]
    for each in tables:
        tables += each.get_children()
    used = {s.get_name() for each in tables for s in each.get_symbols() if s.is_global() and s.is_referenced()}
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    return used - own - set(dir(__builtins__) if not isinstance(__builtins__, dict) else __builtins__)


def imported(python: str) -> set[str]:
    """The modules that a snippet imports, by their dotted names."""
    found = set()
    for node in ast.walk(ast.parse(python)):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found
