"""Arithmetic of `reasoning-gym` with short direct answers: the task of regime ``smollm2``.

Three families of `knapsack_arena.lab.arithmetic` with one right result. A question such as ``38 + 57 = `` follows four
fixed examples, without which SmolLM2 knows few sums. Digits are tokens, so that an answer of 1 to 4 characters has one
tokenization, and a success rate is the probability of its tokens and of the end of the sequence.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, Final

from knapsack_arena.lab.arithmetic import Levels, Problem, draw

EXAMPLES: Final = "3 + 4 = 7\n12 - 5 = 7\n6 * 7 = 42\ngcd(12, 8) = 4\n"
# Most tokens of an answer, end of sequence included.
LONGEST: Final = 5


def _terms(terms: int, digits: int) -> dict[str, Any]:
    """Numbers of at most so many digits."""
    return {"min_terms": terms, "max_terms": terms, "min_digits": 1, "max_digits": digits}


# Settings of reasoning-gym, from easy to hard.
LEVELS: Final[Levels] = {
    "chain_sum": (_terms(2, 1), _terms(2, 2), _terms(3, 1)),
    "products": (_terms(2, 1), _terms(2, 2)),
    "gcd": ({"min_value": 2, "max_value": 30}, {"min_value": 31, "max_value": 199}),
}


def question(problem: Problem) -> str:
    """What the model reads."""
    spaced = re.sub(r"(?<=\d)([-+*])", r" \1 ", problem.prompt.removesuffix("=")).replace(",", ", ")
    return f"{EXAMPLES}{spaced} = "


def problems(sizes: Sequence[int], seed: int) -> list[list[Problem]]:
    """Lists of about these sizes without a common prompt, all families and levels alike, in a seeded order.

    A level with too few different problems gives each list its share of them, and the others give more.
    """
    places = [(family, level) for family, levels in LEVELS.items() for level in range(len(levels))]
    rng = random.Random(seed)
    enough = 3 * sum(sizes) // (2 * len(places)) + len(places)
    drawn = [draw(family, level, enough, seed, LEVELS) for family, level in places]
    # From the scarcest on, so that what one lacks is spread over the rest. Harder levels have easy problems too.
    drawn.sort(key=len)
    seen: set[str] = set()
    for i, found in enumerate(drawn):
        drawn[i] = [problem for problem in found if problem.prompt not in seen]
        seen.update(problem.prompt for problem in found)
        rng.shuffle(drawn[i])
    lists: list[list[Problem]] = [[] for _ in sizes]
    for left, found in zip(range(len(drawn), 0, -1), drawn, strict=True):
        missing = [-(-(size - len(each)) // left) for size, each in zip(sizes, lists, strict=True)]
        share, start = min(1.0, len(found) / sum(missing)), 0
        for each, count in zip(lists, missing, strict=True):
            stop = start + int(count * share)
            each.extend(found[start:stop])
            start = stop
    for each in lists:
        rng.shuffle(each)
    return lists
