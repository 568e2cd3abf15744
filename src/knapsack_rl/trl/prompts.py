"""Which prompt a dataset row is, and whether the dataset can be trained on at all."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from knapsack_rl.ids import content_id
from knapsack_rl.trl.sampler import candidate_rows

_Row = TypeVar("_Row", bound=Mapping[str, Any])

ID_COLUMN = "prompt_id"

# What TRL passes to every reward function beside the dataset's columns.
_PASSED_BY_TRL = {
    "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments",
}  # fmt: skip


def row_id(row: Mapping[str, Any]) -> str:
    """The stable id of a row: its ``prompt_id``, or else a hash of its prompt.

    Raises:
        ValueError: an empty ``prompt_id``, or a prompt that cannot be hashed (images), without one.
    """
    if ID_COLUMN in row:
        if row[ID_COLUMN] is None or row[ID_COLUMN] == "":
            raise ValueError(f"a row has no {ID_COLUMN} (prompt: {str(row.get('prompt'))[:80]!r}): give every row one")
        return str(row[ID_COLUMN])
    if "prompt" not in row or "image" in row or "images" in row:
        raise ValueError(f"rows without a text prompt cannot be told apart by content: add a {ID_COLUMN} column")
    try:
        return content_id(row["prompt"])
    except TypeError as error:
        raise ValueError(f"this prompt cannot be hashed ({error}): add a {ID_COLUMN} column") from error


def candidates(rows: Sequence[_Row], first_row: int, group_size: int, pool: int = 1) -> list[tuple[str, _Row]]:
    """Id and first row of every candidate that begins among these rows, after a check that the rows lie as they should.

    Args:
        rows: consecutive rows of a generation batch, as this process got them.
        first_row: position of ``rows[0]`` in the whole batch.
        group_size: rows per group.
        pool: candidates that share the rows of a group.

    Raises:
        ValueError: two prompts where there should be one: the rows do not come from our sampler.
    """
    ids = [row_id(row) for row in rows]
    # The row before the first one tells whether a candidate begins there, or did on another process.
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
    """Every prompt once: where one pass over the data ends and the next begins, a pool may offer it twice."""
    first: dict[str, _Row] = {}
    for prompt_id, row in offered:
        first.setdefault(prompt_id, row)
    return list(first.items())


def check_dataset(dataset: Any, prompts_per_batch: int, pool: int = 1) -> None:
    """Refuse a dataset that cannot fill one generation batch, or whose ids do not tell its prompts apart.

    Raises:
        ValueError: too few rows, a missing id, or one id for two different prompts; a stream where there is a pool.
    """
    if not hasattr(dataset, "__len__"):
        if pool > 1:
            raise ValueError(
                f"candidate_pool is {pool} and the training dataset is a stream: what a pool leaves out could not come "
                "back. Load the dataset whole, or use candidate_pool=1"
            )
        return  # a stream: its ids are checked as they come
    if pool > 1 and len(dataset) < pool * prompts_per_batch:
        raise ValueError(
            f"the training dataset has {len(dataset)} prompts and one generation batch offers "
            f"{pool * prompts_per_batch} (candidate_pool={pool} for each of {prompts_per_batch}): lower candidate_pool "
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
    """Refuse a reward function that asks for a column the dataset does not have.

    Raises:
        ValueError: naming the function, the column and the columns there are.
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
    """Parameters without a default of a plain function; reward models have none that concern us."""
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        return set()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters: Sequence[inspect.Parameter] = list(inspect.signature(function).parameters.values())
    return {p.name for p in parameters if p.kind in named and p.default is inspect.Parameter.empty}
