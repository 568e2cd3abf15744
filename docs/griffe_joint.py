"""For the reference: ``low_P, high_P: the limits`` is one line in our docstrings, and two parameters to griffe."""

from __future__ import annotations

import re
from typing import Any

import griffe

JOINT = re.compile(r"^(?P<indent> +)(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)+): (?P<text>.*)$")


class SplitJointParameters(griffe.Extension):
    """Give each of the names its own line, with the same text."""

    def on_instance(self, *, obj: griffe.Object, **_kwargs: Any) -> None:
        """Called for every documented object, before its docstring is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = "\n".join(split(obj.docstring.value.splitlines()))


def split(lines: list[str]) -> list[str]:
    """The lines with every joint entry, and what continues it, written once per name."""
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
