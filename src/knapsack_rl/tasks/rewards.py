"""Reward functions with TRL's signature: ``reward(prompts=..., completions=..., **columns) -> list[float | None]``.

A reward of 1.0 is a success. None is no reward: the answer in the data set is missing, or cannot be parsed. Completions
are texts, or lists of messages if the data set is conversational.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from knapsack_rl.files import run_file
from knapsack_rl.tasks import TaskError

Reward: TypeAlias = Callable[..., list[float | None]]
Completion: TypeAlias = str | Sequence[dict[str, Any]]

# Limits the time that sympy may spend on one expression.
MATH_TIMEOUT_SECONDS = 5
_BARE_LATEX = re.compile(r"[\\^{]")
_MARKED_LATEX = re.compile(r"\$|\\boxed|\\\(|\\\[")
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def text_of(completion: Completion) -> str:
    """The text of a completion: itself, or the content of the last message of a conversation."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else ""
    if isinstance(content, list):  # content in parts, as in multimodal templates
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def exact_match(
    prompts: Sequence[object],
    completions: Sequence[Completion],
    answer: Sequence[object] | None = None,
    **_columns: object,
) -> list[float | None]:
    """1.0 where the completion equals the answer, apart from white space around it; None without one; else 0.0."""
    pairs = _pairs(completions, answer, "exact")
    return [
        None if right is None else float(text_of(completion).strip() == right.strip()) for completion, right in pairs
    ]


def math_equal(
    prompts: Sequence[object],
    completions: Sequence[Completion],
    answer: Sequence[object] | None = None,
    **_columns: object,
) -> list[float | None]:
    """1.0 where math-verify finds the completion equal to the answer; None where that is missing or not parsed."""
    pairs = _pairs(completions, answer, "math")
    return [None if right is None else _math_score(text_of(completion), right) for completion, right in pairs]


def reasoning_gym_reward(
    score_answer: Callable[..., float], entries: Sequence[dict[str, Any]], ids: Sequence[str]
) -> Reward:
    """Make a reward function of a reasoning-gym task.

    Args:
        score_answer: the task's method; 1.0 is right, less is partial credit.
        entries: the task's items.
        ids: the ``prompt_id`` of each item.
    """
    by_id = dict(zip(ids, entries, strict=True))

    def reasoning_gym(
        prompts: Sequence[object],
        completions: Sequence[Completion],
        prompt_id: Sequence[str] | None = None,
        **_columns: object,
    ) -> list[float | None]:
        if prompt_id is None:
            raise TaskError("the reasoning-gym reward finds its items by the column 'prompt_id', which is missing")
        scores: list[float | None] = []
        for completion, row in zip(completions, prompt_id, strict=True):
            text = text_of(completion)
            tagged = _ANSWER_TAG.findall(text)
            scores.append(float(score_answer(answer=(tagged[-1] if tagged else text).strip(), entry=by_id[row])))
        return scores

    return reasoning_gym


def named_reward(name: str) -> Reward:
    """Find a reward function: ``exact``, ``math``, or ``FILE.py:FUNCTION`` / ``package.module:FUNCTION``.

    Raises:
        TaskError: an unknown name, a missing module, function or package, or a file that fails.
    """
    if name == "exact":
        return exact_match
    if name == "math":
        if importlib.util.find_spec("math_verify") is None:
            raise TaskError("the reward 'math' needs math-verify: pip install math-verify")
        return math_equal
    module_name, colon, function = name.rpartition(":")
    if not colon:
        raise TaskError(f"unknown reward {name!r}: use exact, math, or FILE.py:FUNCTION")
    reward = getattr(_module(module_name), function, None)
    if not callable(reward):
        raise TaskError(f"{module_name} has no function {function!r} to use as a reward")
    return reward


def _module(name: str) -> object:
    """Import a module by its dotted name, or run a file by its path."""
    try:
        return run_file(name) if name.endswith(".py") else importlib.import_module(name)
    except ImportError as error:
        raise TaskError(f"cannot import the reward's module {name!r}: {error}") from error
    except ValueError as error:
        raise TaskError(f"cannot load the reward: {error}") from error


def _pairs(
    completions: Sequence[Completion], answer: Sequence[object] | None, reward: str
) -> list[tuple[Completion, str | None]]:
    """Each completion with its answer as text; None where the data set has none."""
    if answer is None:
        raise TaskError(f"the reward {reward!r} needs the column 'answer', which the data set does not have")
    if len(answer) != len(completions):
        raise TaskError(f"the reward {reward!r} was given {len(completions)} completions and {len(answer)} answers")
    return [
        (completion, None if right is None else str(right))
        for completion, right in zip(completions, answer, strict=True)
    ]


def _math_score(completion: str, right: str) -> float | None:
    # math-verify cannot parse every answer (a bare "(1,2)"); equal texts are equal all the same.
    if completion.strip() == right.strip():
        return 1.0
    gold = _parsed_answer(right)
    if not gold:
        return None
    from math_verify import parse, verify

    found = parse(completion, parsing_timeout=_math_timeout())
    return float(bool(found) and verify(gold, found, timeout_seconds=_math_timeout()))


@lru_cache(maxsize=4096)  # the rollouts of a group have one answer
def _parsed_answer(right: str) -> Any:
    from math_verify import parse

    # LaTeX is parsed between dollar signs only, which answer columns often lack: 11\sqrt{2} would be read as 11.
    ways = [right, f"${right}$"]
    if _BARE_LATEX.search(right) and not _MARKED_LATEX.search(right):
        ways.reverse()
    timeout = _math_timeout()
    return next(filter(None, (parse(way, parsing_timeout=timeout) for way in ways)), [])


def _math_timeout() -> int | None:
    """The timeout for math-verify: None outside the main thread, because it is implemented by an alarm signal."""
    if threading.current_thread() is threading.main_thread():
        return MATH_TIMEOUT_SECONDS
    for module in ("parser", "grader"):  # each logs a warning about the missing timeout
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    return None
