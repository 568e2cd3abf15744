"""Split ``low_P, high_P: the limits``, one line in our docstrings, into two parameters for the reference."""

from __future__ import annotations

import re
from typing import Any

import griffe

JOINT = re.compile(r"^(?P<indent> +)(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)+): (?P<text>.*)$")


class SplitJointParameters(griffe.Extension):
    """Give each of the names its own line, with the same text."""

    def on_instance(self, *, obj: griffe.Object, **_kwargs: Any) -> None:
        """Rewrite the docstring of a documented object, before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = "\n".join(split(obj.docstring.value.splitlines()))


def split(lines: list[str]) -> list[str]:
    """The lines, with each joint entry and its continuation repeated for each of its names."""
    done: list[str] = []
    while lines:
        line, *lines = lines
        joint = JOINT.match(line)
        if joint is None:
            done.append(line)
            continue
        deeper = joint["indent"] + " "
        more = next((k for k, following in enumerate(lines) if not following.startswith(deeper)), len(lines))
        for name in joint["names"].split(", "):
            done += [f"{joint['indent']}{name}: {joint['text']}", *lines[:more]]
        lines = lines[more:]
    return done
