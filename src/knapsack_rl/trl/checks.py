"""Check, when a trainer is built, that a training data set can be used and has what the reward functions ask for."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.ids import ID_COLUMN
from knapsack_rl.config import STEP_COST, AllocationConfig
from knapsack_rl.notation import BoolArray, IntArray
from knapsack_rl.plan import Plan

# Prompts of a generation batch below which a plan is worth clearly less: with 1 prompt 0.89 of the value that a rollout
# has with 32, with 2 prompts 0.95, with 4 0.97, with 8 0.99 (benchmarks/batch_sizes.py).
FEW = 4

# The step at which its size is judged, and how many times what it deserves is much larger.
ADVICE_STEP, MUCH_LARGER = 10, 3

logger = logging.getLogger(__name__)

# Rows that are compared at once: their prompts are copied.
_BLOCK = 1 << 16


def check_size(dataset: Any, prompts_per_batch: int, pool: int = 1) -> None:
    """Check that the data set can fill one generation batch and its pool.

    Raises:
        ValueError: too few rows; a stream where there is a pool.
    """
    if not hasattr(dataset, "__len__"):
        if pool > 1:
            raise ValueError(
                f"pool is {pool} and the training dataset is a stream, which cannot offer prompts again that a pool "
                "leaves out: load the whole dataset, or use pool=1"
            )
        return
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


def check_pool(pool: int | None, num_generations: int) -> None:
    """Check that a group has a row for each of its candidates.

    Raises:
        ValueError: it has fewer rows.
    """
    if pool is not None and pool > num_generations:
        raise ValueError(
            f"pool is {pool} and num_generations {num_generations}: the candidates share the rows of a group, so there "
            "can be at most num_generations"
        )


def warn_of_few_prompts(config: Any, prompts: int) -> None:
    """Say, for a rule that plans, what size of a generation batch leaves something to plan."""
    if prompts < FEW and config.rule != "uniform":
        logger.warning(
            "a generation batch holds the rollouts of %d prompt%s (generation_batch_size=%d, num_generations=%d), "
            "which leaves a plan little to choose: make it hold those of at least %d, with generation_batch_size=%d or "
            "more (by default per_device_train_batch_size times processes times gradient_accumulation_steps)",
            prompts,
            "" if prompts == 1 else "s",
            config.generation_batch_size,
            config.num_generations,
            FEW,
            FEW * config.num_generations,
        )


def warn_of_smaller_pool(
    default: AllocationConfig, used: AllocationConfig, prompts: int | None, per_batch: int
) -> None:
    """Say that the default pool does not fit the data.

    Args:
        default: the settings without regard to the data.
        used: those of the run.
        prompts: of the data set; None for a stream.
        per_batch: prompts of a generation batch without a pool.
    """
    wanted, fitting = default.pool, used.pool
    assert wanted is not None and fitting is not None
    if fitting < wanted and prompts is None:
        logger.warning(
            "pool=%d instead of %d: the training dataset is a stream, which never offers a prompt again that a pool "
            "leaves out; load the whole dataset to have one",
            fitting,
            wanted,
        )
    elif fitting < wanted:
        logger.warning(
            "pool=%d instead of %d: the training dataset has %d prompts, and a pool of %d asks for %d in each "
            "generation batch; add data, or lower generation_batch_size",
            fitting,
            wanted,
            prompts,
            wanted,
            wanted * per_batch,
        )


def warn_of_large_step(allocator: Any, plan: Plan) -> None:
    """Say once, when beliefs know something, that a smaller step would do: TRL's batches have one size."""
    if plan.step != ADVICE_STEP or not isinstance(allocator, KnapsackAllocator) or allocator.min_count:
        return
    deserved = allocator.deserved(plan, STEP_COST, 1 / (2 * MUCH_LARGER))
    if plan.budget > MUCH_LARGER * deserved:
        logger.warning(
            "a step has %d rollouts, and the value of its plan falls off after about %d: steps of half the size or "
            "less learn more from the same rollouts (generation_batch_size=%d; docs/value.md, how many rollouts a step "
            "deserves)",
            plan.budget,
            deserved,
            plan.budget // 2,
        )


def columns_of(dataset: Any) -> list[str] | None:
    """The columns of a row, where they are known without reading one: a transform may make any."""
    given = getattr(dataset, "format", None)
    if isinstance(given, Mapping):
        if given.get("type") == "custom":
            return None
        if not given.get("output_all_columns"):
            return list(given["columns"])
    return list(getattr(dataset, "column_names", None) or ()) or None


def check_prompt(columns: Collection[str], prompt_needed: bool) -> None:
    """Check that there are prompts, unless environments make them.

    Raises:
        ValueError: there is no column ``prompt``; the message names those there are.
    """
    if prompt_needed and "prompt" not in columns:
        raise ValueError(
            f"the training dataset has no column 'prompt'; it has {', '.join(sorted(columns))}: rename the column with "
            "the prompts"
        )


def check_ids(dataset: Any) -> None:
    """Check that the column ``prompt_id``, where there is one, has an id in every row, and one prompt for each id.

    Reads whole columns: a million rows take less than a second.

    Raises:
        ValueError: a row without an id, or one id for two different prompts.
    """
    if not isinstance(dataset, datasets.Dataset) or ID_COLUMN not in (columns_of(dataset) or ()):
        return  # the ids are checked when rows are read
    # Columns as they are stored, and the order of the rows: a shuffled data set is read row by row otherwise.
    order = None if dataset._indices is None else dataset._indices.column(0).combine_chunks()
    ids = dataset.data.column(ID_COLUMN)
    ids = pa.concat_arrays((ids if order is None else ids.take(order)).chunks or [pa.array([], ids.type)])
    empty = np.asarray(pc.is_null(ids, nan_is_null=True))
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        empty |= np.asarray(pc.fill_null(pc.equal(ids, ""), False))
    if empty.any():
        row = int(np.argmax(empty))
        prompt = str(dataset[row].get("prompt"))[:80]
        raise ValueError(f"a row has no {ID_COLUMN} (row {row}, prompt: {prompt!r}): give every row one")
    if "prompt" not in dataset.column_names or pa.types.is_nested(ids.type):
        return
    first = _first_with_same(ids)
    repeats = np.flatnonzero(first != np.arange(len(first)))
    prompts = dataset.data.column("prompt")
    for start in range(0, repeats.size, _BLOCK):
        block = repeats[start : start + _BLOCK]
        pair = [pa.array(rows) if order is None else order.take(pa.array(rows)) for rows in (block, first[block])]
        differs = ~_equal(*(prompts.take(rows).combine_chunks() for rows in pair))
        if differs.any():
            row = int(block[np.argmax(differs)])
            raise ValueError(
                f"{ID_COLUMN} {ids[row].as_py()!r} stands for two different prompts (one in row {row}): make ids unique"
            )


def _first_with_same(values: pa.Array) -> IntArray:
    """The first position at which the value of each position stands."""
    codes = np.asarray(values.dictionary_encode().indices)
    _, first = np.unique(codes, return_index=True)
    found: IntArray = first[codes].astype(np.int64)
    return found


def _equal(ours: pa.Array, theirs: pa.Array) -> BoolArray:
    """Whether values at the same position are equal, position by position; arrays of one type, nested or not."""
    valid = np.asarray(ours.is_valid())
    same: BoolArray = valid == np.asarray(theirs.is_valid())
    if isinstance(ours, pa.ExtensionArray):
        return _equal(ours.storage, theirs.storage)
    if pa.types.is_struct(ours.type):
        for number in range(ours.type.num_fields):
            same &= _equal(pc.struct_field(ours, number), pc.struct_field(theirs, number))
        return same
    if pa.types.is_list(ours.type) or pa.types.is_large_list(ours.type) or pa.types.is_fixed_size_list(ours.type):
        lengths = [np.asarray(pc.fill_null(pc.list_value_length(each), 0)) for each in (ours, theirs)]
        same &= lengths[0] == lengths[1]
        kept = pa.array(same)
        inside = _equal(ours.filter(kept).flatten(), theirs.filter(kept).flatten())
        rows = np.repeat(np.flatnonzero(same), lengths[0][same])
        same[rows[~inside]] = False
        return same
    return same & np.asarray(pc.fill_null(pc.equal(ours, theirs), True))


def check_reward_columns(reward_funcs: Sequence[Any], columns: Collection[str]) -> None:
    """Check that rows have the columns that the reward functions require.

    Raises:
        ValueError: a missing column; the message names the function, the column and the columns there are.
    """
    from trl.trainer.utils import get_callable_name  # here, because TRL beside ms-swift has none

    from knapsack_rl.trl.rewards import PASSED_BY_TRL, required_parameters

    for function in reward_funcs:
        for name in sorted(required_parameters(function) - PASSED_BY_TRL - set(columns)):
            raise ValueError(
                f"the reward function {get_callable_name(function)!r} asks for the column {name!r}; the "
                f"dataset has {', '.join(sorted(columns))}: rename a column or the parameter"
            )
