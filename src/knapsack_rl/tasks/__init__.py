"""Prompts, answers, rewards and models to train with. Import its modules by path."""

from __future__ import annotations

import ast
from typing import Any, Final

# The name of the built-in model and of the built-in data set.
EMBEDDED: Final = "embedded"


class TaskError(ValueError):
    """A model, data set, column, reward or setting that cannot be used; the message is one line."""


def parse_settings(query: str) -> dict[str, Any]:
    """Parse the settings behind a name, as in ``reasoning-gym:chain_sum?size=500&max_terms=2``.

    Args:
        query: the part after the question mark. Values are read as Python literals where possible, else as text.

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
