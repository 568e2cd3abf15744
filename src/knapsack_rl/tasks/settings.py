"""Settings behind a name, as in ``reasoning-gym:chain_sum?size=500&max_terms=2``."""

from __future__ import annotations

import ast
from typing import Any

from knapsack_rl.tasks.errors import TaskError


def parse_settings(query: str) -> dict[str, Any]:
    """``a=1&b=x`` as a dictionary; values are Python literals where they can be, texts otherwise.

    Raises:
        TaskError: a part without an equals sign.
    """
    settings: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals:
            raise TaskError(f"cannot read the setting {part!r}: write NAME?key=value&key=value")
        try:
            settings[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[key] = value
    return settings
