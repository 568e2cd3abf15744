"""Reward functions as TRL calls them: what they ask for, what they return, and the rewards of a whole batch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from trl.trainer.utils import get_callable_name

try:
    from trl.trainer.utils import is_async_callable
except ImportError:  # TRL before 1.14, which awaits functions only and no objects
    from inspect import iscoroutinefunction as is_async_callable

# Arguments that TRL passes to every reward function in addition to the columns of the data set.
PASSED_BY_TRL = {
    "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments",
}  # fmt: skip


@contextmanager
def checked_rewards(trainer: Any) -> Iterator[None]:
    """While in it, the trainer's reward functions say by name what is wrong with what they are given or return."""
    given = trainer.reward_funcs
    trainer.reward_funcs = [each if isinstance(each, torch.nn.Module) else _checked(each) for each in given]
    try:
        yield
    finally:
        trainer.reward_funcs = given


@contextmanager
def captured_rewards(trainer: Any) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """While in it, keep rewards ``[PG, functions]`` and completion lengths ``[PG]``, gathered from all processes.

    TRL's own call is intercepted on the object, because a subclass may override the method without calling ours.
    """
    calculate, captured = trainer._calculate_rewards, []

    def calculate_and_keep(inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        rewards = calculate(inputs, prompts, completions, completion_ids_list)
        lengths = torch.tensor([len(ids) for ids in completion_ids_list], device=rewards.device)
        captured.append((rewards.detach().clone(), trainer.accelerator.gather(lengths)))
        return rewards

    replaced = vars(trainer).get("_calculate_rewards")
    trainer._calculate_rewards = calculate_and_keep
    try:
        yield captured
    finally:
        del trainer._calculate_rewards
        if replaced is not None:
            trainer._calculate_rewards = replaced


def _signature(function: Any) -> inspect.Signature | None:
    """What the function itself takes, not what it decorates; None where that is unknown, as for models."""
    if isinstance(function, torch.nn.Module) or not callable(function):
        return None
    try:
        return inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None


def required_parameters(function: Any) -> set[str]:
    """Parameters that can be given by name and have no default."""
    signature = _signature(function)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = signature.parameters.values() if signature else ()
    return {each.name for each in parameters if each.kind in named and each.default is inspect.Parameter.empty}


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with checks of its arguments, its errors and its values; asynchronous as it is."""
    name, signature = get_callable_name(function), _signature(function)

    @contextmanager
    def calling(given: Mapping[str, Any]) -> Iterator[None]:
        columns = ", ".join(sorted(set(given) - PASSED_BY_TRL)) or "no others"
        try:
            if signature is not None:
                signature.bind(**given)
        except TypeError as error:
            raise ValueError(
                f"the reward function {name!r} cannot be called with what TRL passes ({error}); beside prompts and "
                f"completions there are {columns}: rename a column or a parameter, and take **kwargs"
            ) from error
        try:
            yield
        except KeyError as error:
            raise ValueError(
                f"the reward function {name!r} raised KeyError({error}); beside prompts and completions there are "
                f"the columns {columns}"
            ) from error
        except Exception as error:
            error.add_note(f"in the reward function {name!r}")
            raise

    if is_async_callable(function):

        @functools.wraps(function, updated=())
        async def checked_async(**given: Any) -> list[Any]:
            with calling(given):
                found = await function(**given)
            return _numbers(name, found, len(given["completions"]))

        return checked_async

    @functools.wraps(function, updated=())
    def checked(**given: Any) -> list[Any]:
        with calling(given):
            found = function(**given)
        return _numbers(name, found, len(given["completions"]))

    return checked


def _numbers(name: str, found: Any, completions: int) -> list[float | None]:
    """The rewards as a list.

    Raises:
        ValueError: anything but a number or None for each completion; the message names the function.
    """
    expected = f"it must return a list with one number (or None) for each of the {completions} completions"
    wrong = ValueError(f"the reward function {name!r} returned {_short(found)}: {expected}")
    if isinstance(found, str | bytes | Mapping):
        raise wrong
    try:
        values = list(found)
    except TypeError as error:
        raise wrong from error
    if len(values) != completions:
        raise ValueError(f"the reward function {name!r} returned {len(values)} rewards: {expected}")
    for i, value in enumerate(values):
        try:
            values[i] = None if value is None else _number(value)
        except (OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"the reward function {name!r} returned {_short(value)} for completion {i}: {expected}"
            ) from error
    return values


def _number(value: Any) -> float:
    """A number of any kind: Python's, numpy's, torch's, a Decimal; not a text, and not an array of several."""
    if isinstance(value, str | bytes) or getattr(value, "ndim", 0) > 0:
        raise TypeError
    return float(value)


def _short(value: Any) -> str:
    """The value and its type, for a message."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:60] + '...'} ({type(value).__name__})"
