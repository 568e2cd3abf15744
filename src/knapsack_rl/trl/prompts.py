"""Identify the prompt of each dataset row, and check the dataset before training."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from knapsack_rl.beliefs.ids import content_id
from knapsack_rl.trl.sampler import candidate_rows

_Row = TypeVar("_Row", bound=Mapping[str, Any])

ID_COLUMN = "prompt_id"

# Arguments that TRL passes to every reward function in addition to the dataset's columns.
_PASSED_BY_TRL = {
    "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments",
}  # fmt: skip


def row_id(row: Mapping[str, Any]) -> str:
    """Return the stable id of a row: its ``prompt_id``, or a hash of its prompt if there is no such column.

    Raises:
        ValueError: an empty ``prompt_id``, or a prompt that cannot be hashed (images), without one.
    """
    if ID_COLUMN in row:
        if row[ID_COLUMN] is None or row[ID_COLUMN] == "":
            raise ValueError(f"a row has no {ID_COLUMN} (prompt: {str(row.get('prompt'))[:80]!r}): give every row one")
        return str(row[ID_COLUMN])
    if "prompt" not in row or "image" in row or "images" in row:
        raise ValueError(f"rows without a text prompt cannot be identified by content: add a {ID_COLUMN} column")
    try:
        return content_id(row["prompt"])
    except TypeError as error:
        raise ValueError(f"this prompt cannot be hashed ({error}): add a {ID_COLUMN} column") from error


def candidates(rows: Sequence[_Row], first_row: int, group_size: int, pool: int = 1) -> list[tuple[str, _Row]]:
    """Return id and first row of every candidate that begins among these rows, and check the order of the rows.

    Args:
        rows: consecutive rows of a generation batch, those of this process.
        first_row: position of ``rows[0]`` in the whole batch.
        group_size: rows per group.
        pool: candidates that share the rows of a group.

    Raises:
        ValueError: different prompts in the rows of one candidate, so that the rows do not come from our sampler.
    """
    ids = [row_id(row) for row in rows]
    # The row before the first one shows whether a candidate begins at the first one or on another process.
    number = candidate_rows(np.arange(first_row - 1, first_row + len(rows)), group_size, pool)
    begins = number[1:] != number[:-1]
    for i in range(1, len(ids)):
        if not begins[i] and ids[i] != ids[i - 1]:
            shared = f"group of {group_size}" if pool == 1 else f"of the {pool} candidates in a group of {group_size}"
            raise ValueError(
                f"rows {first_row + i - 1} and {first_row + i} belong to one {shared} but are prompts "
                f"{ids[i - 1]!r} and {ids[i]!r}: leave the train sampler to TRL"
            )
    return [(ids[i], rows[i]) for i in np.flatnonzero(begins).tolist()]


def distinct(offered: Sequence[tuple[str, _Row]]) -> list[tuple[str, _Row]]:
    """Keep the first row of every prompt; where two passes over the data meet, a pool may offer a prompt twice."""
    first: dict[str, _Row] = {}
    for prompt_id, row in offered:
        first.setdefault(prompt_id, row)
    return list(first.items())


def check_dataset(dataset: Any, prompts_per_batch: int, pool: int = 1) -> None:
    """Check that the dataset can fill one generation batch, and that its ids identify its prompts.

    Raises:
        ValueError: too few rows, a missing id, or one id for two different prompts; a stream where there is a pool.
    """
    if not hasattr(dataset, "__len__"):
        if pool > 1:
            raise ValueError(
                f"pool is {pool} and the training dataset is a stream, which cannot offer prompts again that a pool "
                "leaves out: load the whole dataset, or use pool=1"
            )
        return  # the ids of a stream are checked when its rows are read
    if pool > 1 and len(dataset) < pool * prompts_per_batch:
        raise ValueError(
            f"the training dataset has {len(dataset)} prompts and one generation batch offers "
            f"{pool * prompts_per_batch} (pool={pool} for each of {prompts_per_batch}): lower pool "
            "or the size of a generation batch, or add data"
        )
    if len(dataset) < prompts_per_batch:
        raise ValueError(
            f"the training dataset has {len(dataset)} prompts and one generation batch needs {prompts_per_batch}: "
            "add data, or lower per_device_train_batch_size, steps_per_generation or generation_batch_size"
        )
    if ID_COLUMN not in (getattr(dataset, "column_names", None) or ()):
        return
    ids = [row_id({ID_COLUMN: value}) for value in dataset[ID_COLUMN]]
    repeated = {prompt_id for prompt_id, times in Counter(ids).items() if times > 1}
    prompts: dict[str, Any] = {}
    for i in (i for i, prompt_id in enumerate(ids) if prompt_id in repeated):
        prompt = dataset[i].get("prompt")
        if prompts.setdefault(ids[i], prompt) != prompt:
            raise ValueError(
                f"{ID_COLUMN} {ids[i]!r} stands for two different prompts (one in row {i}): make ids unique"
            )


def check_reward_columns(reward_funcs: Sequence[Any], dataset: Any) -> None:
    """Check that the dataset has the columns that the reward functions require.

    Raises:
        ValueError: a missing column; the message names the function, the column and the columns there are.
    """
    columns = getattr(dataset, "column_names", None)
    if not columns:
        return
    for function in reward_funcs:
        for name in _required_parameters(function) - _PASSED_BY_TRL - set(columns):
            raise ValueError(
                f"the reward function {getattr(function, '__name__', function)!r} asks for the column {name!r}; the "
                f"dataset has {', '.join(sorted(columns))}: rename a column or the parameter"
            )


def _required_parameters(function: Any) -> set[str]:
    """Parameters without a default of a plain function; empty for reward models."""
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        return set()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters: Sequence[inspect.Parameter] = list(inspect.signature(function).parameters.values())
    return {p.name for p in parameters if p.kind in named and p.default is inspect.Parameter.empty}
