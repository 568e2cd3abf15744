"""Which prompt a dataset row is, and whether the dataset can be trained on at all."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from knapsack_rl.ids import content_id

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


def group_ids(rows: Sequence[Mapping[str, Any]], first_row: int, group_size: int) -> list[str]:
    """The id of every group that begins among these rows, after a check that groups do hold one prompt each.

    Args:
        rows: consecutive rows of a generation batch, as this process got them.
        first_row: position of ``rows[0]`` in the whole batch.
        group_size: rows per group.

    Raises:
        ValueError: a group with two prompts: the rows do not come from TRL's sampler.
    """
    ids = [row_id(row) for row in rows]
    for i in range(1, len(ids)):
        if (first_row + i) % group_size and ids[i] != ids[i - 1]:
            raise ValueError(
                f"rows {first_row + i - 1} and {first_row + i} belong to one group of {group_size} but are prompts "
                f"{ids[i - 1]!r} and {ids[i]!r}: leave the train sampler to TRL"
            )
    return ids[-first_row % group_size :: group_size]


def check_dataset(dataset: Any, prompts_per_batch: int) -> None:
    """Refuse a dataset that cannot fill one generation batch, or whose ids do not tell its prompts apart.

    Raises:
        ValueError: too few rows, a missing id, or one id for two different prompts.
    """
    if not hasattr(dataset, "__len__"):
        return  # a stream: its ids are checked as they come
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
