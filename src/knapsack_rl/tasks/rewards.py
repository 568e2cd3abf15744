"""Scorers, as TRL calls them: ``reward(prompts=..., completions=..., **columns) -> list[float | None]``.

A reward of 1.0 is a success. None means "cannot be judged" (the row's own answer is unreadable): not a failure.
Completions are texts, or message lists when the data set is conversational.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import sys
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from knapsack_rl.tasks.errors import TaskError

Reward: TypeAlias = Callable[..., list[float | None]]
Completion: TypeAlias = str | Sequence[dict[str, Any]]

# Generous: sympy may take seconds for one unlucky expression, and a step must not hang on it.
MATH_TIMEOUT_SECONDS = 5
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def text_of(completion: Completion) -> str:
    """What the model said: the text, or the content of the last message of a conversation."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else ""
    if isinstance(content, list):  # content in parts, as multimodal templates have it
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def exact_match(
    prompts: Sequence[object],
    completions: Sequence[Completion],
    answer: Sequence[object] | None = None,
    **_columns: object,
) -> list[float | None]:
    """1.0 where the completion is the answer, character by character, white space around it apart; else 0.0."""
    expected = _answers(answer, len(completions), "exact")
    return [float(text_of(said).strip() == right.strip()) for said, right in zip(completions, expected, strict=True)]


def math_equal(
    prompts: Sequence[object],
    completions: Sequence[Completion],
    answer: Sequence[object] | None = None,
    **_columns: object,
) -> list[float | None]:
    """1.0 where math-verify finds the completion equal to the answer; None where the answer is unreadable."""
    expected = _answers(answer, len(completions), "math")
    return [_math_score(text_of(said), right) for said, right in zip(completions, expected, strict=True)]


def reasoning_gym_reward(
    score_answer: Callable[..., float], entries: Sequence[dict[str, Any]], ids: Sequence[str]
) -> Reward:
    """The scorer that a reasoning-gym task brings along.

    Args:
        score_answer: the task's own method; 1.0 is right, less is partial credit.
        entries: the task's items.
        ids: the ``prompt_id`` of each item, by which rows find their item again.
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
        for said, row in zip(completions, prompt_id, strict=True):
            text = text_of(said)
            tagged = _ANSWER_TAG.findall(text)
            scores.append(float(score_answer(answer=(tagged[-1] if tagged else text).strip(), entry=by_id[row])))
        return scores

    return reasoning_gym


def named_reward(name: str) -> Reward:
    """The reward that ``--reward`` names: ``exact``, ``math``, or ``FILE.py:FUNCTION`` / ``package.module:FUNCTION``.

    Raises:
        TaskError: an unknown name, a module or function that is not there, or a missing package.
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
    """Import a module by its dotted name, or a file by its path."""
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise TaskError(f"cannot import the reward's module {name!r}: {error}") from error
    path = Path(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise TaskError(f"there is no file {name} to take the reward from")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _answers(answer: Sequence[object] | None, rows: int, reward: str) -> list[str]:
    if answer is None:
        raise TaskError(f"the reward {reward!r} compares with the column 'answer', which the data set does not have")
    if len(answer) != rows:
        raise TaskError(f"{rows} completions came with {len(answer)} answers")
    return [str(right) for right in answer]


def _math_score(said: str, right: str) -> float | None:
    # What is literally the answer is right, even where math-verify reads neither (a bare "(1,2)").
    if said.strip() == right.strip():
        return 1.0
    gold = _parsed_answer(right)
    if not gold:
        return None
    from math_verify import parse, verify

    found = parse(said, parsing_timeout=_math_timeout())
    return float(bool(found) and verify(gold, found, timeout_seconds=_math_timeout()))


@lru_cache(maxsize=4096)  # all rollouts of a group share one answer
def _parsed_answer(right: str) -> Any:
    from math_verify import parse

    # An answer column often holds bare LaTeX, which is only read between dollar signs.
    timeout = _math_timeout()
    return parse(right, parsing_timeout=timeout) or parse(f"${right}$", parsing_timeout=timeout)


def _math_timeout() -> int | None:
    """math-verify's timeouts are alarm signals, which exist in the main thread only; elsewhere it must go without."""
    if threading.current_thread() is threading.main_thread():
        return MATH_TIMEOUT_SECONDS
    for module in ("parser", "grader"):  # each warns about the missing timeout, once
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    return None
