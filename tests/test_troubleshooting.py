"""The messages that the troubleshooting page lists are those that the library prints."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOLE = "\0"  # a name or number in a message


def texts(tree: ast.AST) -> list[str]:
    """All strings of a module; what is filled in at run time is a hole."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(re.sub(r"%[sdg]", HOLE, node.value))
        elif isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values))
    return found


def test_messages_of_the_troubleshooting_page_are_printed() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    there = [text for file in (ROOT / "src").rglob("*.py") for text in texts(ast.parse(file.read_text("utf-8")))]
    listed = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)  # not those that name another library
    assert len(listed) > 20
    for message in listed:
        pattern = re.compile(".*?".join(re.escape(part.strip()) for part in message.split("...")))
        assert any(pattern.search(text) for text in there), f"nothing prints {message!r}"
