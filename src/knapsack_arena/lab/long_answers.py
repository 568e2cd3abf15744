"""A task with long answers, many of them right, judged by a program: walk through a graph and name what is met.

A prompt is a mode, a number of steps and a letter, such as ``B7c=``. A right answer has that many steps of four tokens:
a letter that follows the one before in a fixed graph, one of the two codes of two characters that are right for this
mode and letter, and the number of steps left. A prompt of ``k`` steps has ``4^k`` walks times ``2^k`` codes, in
``4 k + 1`` tokens, end of sequence included. The reward is 1 if and only if all of it is right. All prompts share the
same facts (mode, letter), so training on one prompt improves others, and a policy may learn to walk where it knows the
codes.

Demonstrators, from which the base model learns, know each fact with a rate of its own, and otherwise write a fixed
wrong code. A prompt's chance under demonstrators is about its success rate at the start.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeAlias

MODES: Final = "ABCDEFGHIJKL"
LETTERS: Final = "abcdefghijklmnopqrst"
# Numbers of steps, from 1 on, one token each.
COUNTS: Final = "123456789uvwxyz"
CODE_CHARACTERS: Final = "!?$%&#"
CHARACTERS: Final = "".join(sorted(MODES + LETTERS + COUNTS + CODE_CHARACTERS + "="))
TOKENS_PER_STEP: Final = 4
FOLLOWERS: Final = 4
# Answers of 21 to 57 tokens.
STEPS: Final = range(5, 15)
# Rates at which demonstrators know a fact, and their weights among the facts of the easiest and of the hardest mode.
KNOWN_RATES: Final = (0.995, 0.8, 0.4, 0.1)
EASIEST: Final = (0.97, 0.03, 0.0, 0.0)
HARDEST: Final = (0.2, 0.35, 0.25, 0.2)
# How often demonstrators that know a fact write the first of its two right codes.
FIRST_RATES: Final = (0.9, 0.5, 0.1)

Fact: TypeAlias = tuple[str, str]
# Whether an answer (second) to a prompt (first) is right.
Verifier: TypeAlias = Callable[[str, str], bool]


@dataclass(frozen=True)
class Walks:
    """The graph and the facts of one instance of the task.

    Attributes:
        followers: the letters that may follow each letter.
        codes: of each fact (mode, letter): two right ones and a wrong one.
        known: rate at which demonstrators know it.
        first: how often they then write the first right code.
    """

    followers: dict[str, str]
    codes: dict[Fact, tuple[str, str, str]]
    known: dict[Fact, float]
    first: dict[Fact, float]

    def draw(self, rng: random.Random) -> str:
        """A prompt."""
        return f"{rng.choice(MODES)}{COUNTS[rng.choice(STEPS) - 1]}{rng.choice(LETTERS)}="

    def chance(self, prompt: str) -> float:
        """The rate at which demonstrators answer a prompt right: the mean over all walks of the product of rates."""
        mode, steps, letter = _parts(prompt)
        rates = dict.fromkeys(LETTERS, 1.0)
        for _ in range(steps):
            rates = {
                each: sum(self.known[mode, next_] * rates[next_] for next_ in self.followers[each]) / FOLLOWERS
                for each in LETTERS
            }
        return rates[letter]

    @cached_property
    def chances(self) -> dict[str, float]:
        """The chance of every prompt."""
        every = [f"{mode}{COUNTS[steps - 1]}{letter}=" for mode in MODES for steps in STEPS for letter in LETTERS]
        return {prompt: self.chance(prompt) for prompt in every}

    def demonstration(self, prompt: str, rng: random.Random) -> str:
        """An answer of the demonstrators, on a random walk."""
        mode, steps, letter = _parts(prompt)
        written = []
        for left in range(steps, 0, -1):
            letter = rng.choice(self.followers[letter])
            first, second, wrong = self.codes[mode, letter]
            right = first if rng.random() < self.first[mode, letter] else second
            code = right if rng.random() < self.known[mode, letter] else wrong
            written.append(letter + code + COUNTS[left - 1])
        return "".join(written)

    def teach(self, rng: random.Random, count: int) -> list[tuple[str, str]]:
        """Prompts and demonstrations for the warm start."""
        prompts = [self.draw(rng) for _ in range(count)]
        return [(prompt, self.demonstration(prompt, rng)) for prompt in prompts]

    def verify(self, prompt: str, answer: str) -> bool:
        """Whether an answer is a walk of the right length with right codes."""
        mode, steps, letter = _parts(prompt)
        if len(answer) != TOKENS_PER_STEP * steps:
            return False
        for place in range(steps):
            here, code, left = _step(answer, place)
            if here not in self.followers[letter] or code not in self.codes[mode, here][:2]:
                return False
            if left != COUNTS[steps - place - 1]:
                return False
            letter = here
        return True

    def prompts(self, count: int, seed: int, edges: Sequence[float], shares: Sequence[float]) -> list[str]:
        """Draw different prompts such that each interval of demonstrators' chances has its share of them.

        Args:
            count: number of prompts, up to the rounding of shares.
            seed: of the draw.
            edges: bounds of the intervals of chances, from 0 to 1, ``[I + 1]``.
            shares: of the prompts in each interval, adding up to 1, ``[I]``.

        Raises:
            ValueError: an interval has fewer prompts than its share.
        """
        rng = random.Random(seed)
        every = list(self.chances)
        rng.shuffle(every)
        drawn: list[str] = []
        for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True):
            inside = [prompt for prompt in every if low < self.chances[prompt] <= high]
            wanted = round(share * count)
            if len(inside) < wanted:
                raise ValueError(f"{len(inside)} prompts have a chance of {low} to {high}, {wanted} were asked for")
            drawn += inside[:wanted]
        rng.shuffle(drawn)
        return drawn


def walks(seed: int) -> Walks:
    """The task whose graph and facts are drawn with a seed."""
    rng = random.Random(f"walks {seed}")
    followers = {letter: "".join(rng.sample(LETTERS.replace(letter, ""), FOLLOWERS)) for letter in LETTERS}
    every = [a + b for a in CODE_CHARACTERS for b in CODE_CHARACTERS]
    codes: dict[Fact, tuple[str, str, str]] = {}
    known: dict[Fact, float] = {}
    first: dict[Fact, float] = {}
    ease = {mode: i / (len(MODES) - 1) for i, mode in enumerate(rng.sample(MODES, len(MODES)))}
    for mode in MODES:
        weights = [ease[mode] * e + (1 - ease[mode]) * h for e, h in zip(EASIEST, HARDEST, strict=True)]
        for letter in LETTERS:
            one, two, wrong = rng.sample(every, 3)
            codes[mode, letter] = (one, two, wrong)
            known[mode, letter] = rng.choices(KNOWN_RATES, weights)[0]
            first[mode, letter] = rng.choice(FIRST_RATES)
    return Walks(followers, codes, known, first)


def _parts(prompt: str) -> tuple[str, int, str]:
    """Mode, number of steps and first letter of a prompt."""
    return prompt[0], COUNTS.index(prompt[1]) + 1, prompt[2]


def _step(answer: str, place: int) -> tuple[str, str, str]:
    """Letter, code and number of a step of an answer."""
    part = answer[place * TOKENS_PER_STEP : (place + 1) * TOKENS_PER_STEP]
    return part[0], part[1:3], part[3]
