"""Arithmetic of four families and several levels, drawn by reasoning-gym, with answers that a program verifies.

A problem has a short prompt, a direct answer (``gcd(84,36)=`` and ``12``) and a worked one, line by line, whose last
line follows ``#``. Three families have one right result; a *countdown* (reach a target with given numbers) has many.
"""

from __future__ import annotations

import ast
import operator
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, TypeAlias

Levels: TypeAlias = Mapping[str, tuple[dict[str, Any], ...]]
# reasoning-gym's settings for each family and level, from easy to hard.
LEVELS: Final[Levels] = {
    "chain_sum": (
        {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
        {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 2},
        {"min_terms": 4, "max_terms": 4, "min_digits": 2, "max_digits": 2},
        {"min_terms": 5, "max_terms": 5, "min_digits": 2, "max_digits": 3},
    ),
    "products": (
        {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
        {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1},
        {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
    ),
    "gcd": (
        {"min_value": 2, "max_value": 30},
        {"min_value": 31, "max_value": 199},
        {"min_value": 200, "max_value": 999},
    ),
    "countdown": (
        {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 12, "min_target": 3, "max_target": 99},
        {"min_numbers": 3, "max_numbers": 3, "min_value": 2, "max_value": 12, "min_target": 5, "max_target": 99},
        {"min_numbers": 4, "max_numbers": 4, "min_value": 2, "max_value": 20, "min_target": 5, "max_target": 99},
    ),
}
RESULT: Final = "#"
_OPERATORS: Final[Mapping[type[ast.operator], tuple[str, Callable[[Fraction, Fraction], Fraction]]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        prompt: what the model reads.
        answer: a right result.
        worked: lines of working that end in `RESULT` and the result.
        source: family and level, such as ``gcd-1``.
    """

    prompt: str
    answer: str
    worked: str
    source: str


def draw(family: str, level: int, count: int, seed: int, levels: Levels = LEVELS) -> list[Problem]:
    """Draw different problems; needs the package ``reasoning-gym``.

    Args:
        family, level: a place in ``levels``.
        count: how many; fewer where a level has not as many different ones.
        seed: of the draw.
        levels: reasoning-gym's settings.
    """
    from reasoning_gym import create_dataset

    entries = create_dataset(family, seed=seed, size=20 * count, **levels[family][level])
    found: dict[str, Problem] = {}
    for i in range(20 * count):
        problem = _problem(family, f"{family}-{level}", entries[i])
        if problem is not None:
            found.setdefault(problem.prompt, problem)
        if len(found) == count:
            break
    return list(found.values())


def splits(sizes: tuple[int, ...], seed: int) -> list[list[Problem]]:
    """Lists of these sizes without a common prompt, each with all families and levels in about the same numbers."""
    places = [(family, level) for family, levels in LEVELS.items() for level in range(len(levels))]
    parts: list[list[Problem]] = [[] for _ in sizes]
    rng = random.Random(seed)
    for family, level in places:
        wanted = [-(-size // len(places)) for size in sizes]
        drawn = draw(family, level, sum(wanted), seed)
        rng.shuffle(drawn)
        for part, share in zip(parts, wanted, strict=True):
            # A level with too few problems gives each part its share of them.
            part.extend(drawn[: max(1, share * len(drawn) // sum(wanted))])
            drawn = drawn[max(1, share * len(drawn) // sum(wanted)) :]
    return parts


def verify(prompt: str, text: str) -> bool:
    """Whether a text, direct or worked, ends in a right result for a prompt; never raises an error."""
    prompt, result = prompt.strip(), text.rpartition(RESULT)[2].strip()
    if prompt.startswith("make "):
        return _reaches(prompt, result)
    return bool(re.fullmatch(r"-?\d{1,12}", result)) and int(result) == _value(prompt)


def _value(prompt: str) -> int:
    """The result that a prompt with one result asks for."""
    if prompt.startswith("gcd("):
        one, two = map(int, re.findall(r"\d+", prompt))
        while two:
            one, two = two, one % two
        return one
    return int(_evaluated(prompt.removesuffix("="), []))


def _reaches(prompt: str, result: str) -> bool:
    target, *given = map(int, re.findall(r"\d+", prompt))
    try:
        used: list[int] = []
        value = _evaluated(result, used)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return False
    return value == target and sorted(used) == sorted(given)


def _evaluated(expression: str, used: list[int], lines: list[str] | None = None) -> Fraction:
    """The value of an expression of whole numbers; the numbers are added to ``used``, and its steps to ``lines``.

    Raises:
        ValueError: something other than whole numbers, brackets and four operators.
        SyntaxError, ArithmeticError: no expression, or a division by zero.
    """
    if not re.fullmatch(r"[\d+\-*/() ]{1,64}", expression):
        raise ValueError(f"{expression!r} is not an expression of whole numbers")

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            used.append(node.value)
            return Fraction(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            sign, apply = _OPERATORS[type(node.op)]
            one, two = value(node.left), value(node.right)
            found = apply(one, two)
            if lines is not None:
                lines.append(f"{one}{sign}{two}={found}")
            return found
        raise ValueError(f"{expression!r} is not an expression of whole numbers")

    return value(ast.parse(expression.strip(), mode="eval").body)


def _problem(family: str, source: str, entry: Mapping[str, Any]) -> Problem | None:
    """A problem of reasoning-gym in our words; None for a countdown with a negative or broken step."""
    known = entry["metadata"]
    lines: list[str] = []
    if family == "countdown":
        answer = known["expression"].replace(" ", "")
        prompt = f"make {known['target']} from {','.join(map(str, known['numbers']))}:"
        if answer.startswith("-") or "(-" in answer:
            return None
        _evaluated(answer, [], lines)
        if any("/" in line.partition("=")[2] or "=-" in line for line in lines):
            return None
    elif family == "gcd":
        one, two = known["numbers"]
        answer, prompt = entry["answer"], f"gcd({one},{two})="
        lines = list(_euclid(one, two))
    elif family == "products":
        expression = known["expression"].replace(" ", "")
        answer, prompt = entry["answer"], f"{expression}="
        one, two, *more = map(int, expression.split("*"))
        if more:
            _evaluated(expression, [], lines)
        else:
            lines = list(_long_multiplication(one, two))
    else:
        expression = known["expression"].replace(" ", "")
        answer, prompt = entry["answer"], f"{expression}="
        _evaluated(expression, [], lines)
    return Problem(prompt, answer, "\n".join([*lines, RESULT + answer]), source)


def _euclid(one: int, two: int) -> Iterator[str]:
    one, two = max(one, two), min(one, two)
    while two:
        yield f"{one}%{two}={one % two}"
        one, two = two, one % two


def _long_multiplication(one: int, two: int) -> Iterator[str]:
    total = 0
    for place, digit in enumerate(reversed(str(two))):
        if digit == "0":
            continue
        part = int(digit) * 10**place
        yield f"{one}*{part}={one * part}"
        if total:
            yield f"{total}+{one * part}={total + one * part}"
        total += one * part
