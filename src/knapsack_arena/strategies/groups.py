"""Select, thin out and join groups whose rollouts come in several rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from knapsack_arena.strategies.protocol import Batch, RolloutRequest, StepSpec
from knapsack_rl.notation import BoolArray, IntArray
from knapsack_rl.outcomes import Outcomes


def group_size(spec: StepSpec) -> int:
    """Rollouts per prompt under equal division, the n of stock GRPO; the remainder of the division is not spent.

    Raises:
        ValueError: a budget that would leave a group of one.
    """
    size = spec.budget // max(spec.groups, 1)
    if size < 2:
        raise ValueError(
            f"{spec.budget} rollouts for {spec.groups} prompts leave groups of one: give at least {2 * spec.groups}"
        )
    return size


def equal_request(prompt_ids: Sequence[str], count: int) -> RolloutRequest:
    """``count`` rollouts of each of these prompts."""
    return RolloutRequest(tuple(prompt_ids), np.full(len(prompt_ids), count, dtype=np.int64))


def no_groups(step: int) -> Outcomes:
    """Outcomes without groups."""
    return Outcomes(step, (), np.zeros(0, dtype=np.int64), np.zeros(0))


def pick(outcomes: Outcomes, chosen: IntArray | BoolArray) -> Outcomes:
    """Some of the groups: those at these positions, in this order, or those where a mask ``[P]`` is True."""
    groups: IntArray = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.int64)
    counts_P = outcomes.counts_P[groups]
    starts_P = np.cumsum(outcomes.counts_P) - outcomes.counts_P
    within_PG = np.arange(int(counts_P.sum())) - np.repeat(np.cumsum(counts_P) - counts_P, counts_P)
    rows_PG = np.repeat(starts_P[groups], counts_P) + within_PG
    return replace(
        outcomes,
        prompt_ids=tuple([outcomes.prompt_ids[i] for i in groups.tolist()]),
        features=None if outcomes.features is None else outcomes.features.take(groups),
        **_rows(outcomes, counts_P, rows_PG),
    )


def thin(outcomes: Outcomes, kept_PG: BoolArray) -> Outcomes:
    """All groups, with only the rows where the mask ``[PG]`` is True."""
    counts_P = np.bincount(outcomes.group_PG[kept_PG], minlength=len(outcomes.prompt_ids)).astype(np.int64)
    return replace(outcomes, **_rows(outcomes, counts_P, np.flatnonzero(kept_PG)))


def join(step: int, parts: Sequence[Outcomes]) -> Outcomes:
    """The groups of all parts, one per prompt, in order of first appearance; rows in order of arrival.

    Lengths are known where every part with rows knows them; the threshold of success is that of the last part.
    """
    place: dict[str, int] = {}
    for part in parts:
        for prompt_id in part.prompt_ids:
            place.setdefault(prompt_id, len(place))
    if not place:
        return no_groups(step)
    to_group = [np.array([place[prompt_id] for prompt_id in part.prompt_ids], dtype=np.int64) for part in parts]
    group_PG = np.concatenate([groups[part.group_PG] for groups, part in zip(to_group, parts, strict=True)])
    order = np.argsort(group_PG, kind="stable")
    lengths = [part.tokens_PG for part in parts if part.rewards_PG.size]
    known = [tokens for tokens in lengths if tokens is not None]
    return Outcomes(
        step=step,
        prompt_ids=tuple(place),
        counts_P=np.bincount(group_PG, minlength=len(place)).astype(np.int64),
        rewards_PG=np.concatenate([part.rewards_PG for part in parts])[order],
        tokens_PG=np.concatenate(known)[order] if known and len(known) == len(lengths) else None,
        success_threshold=parts[-1].success_threshold,
    )


def to_train(step: int, found: Sequence[Outcomes], most: int, last: Outcomes) -> Batch:
    """The batch of a strategy that searches for mixed groups: the first ``most`` of those found.

    If none was found, the groups of the ``last`` round with at least two answers: they carry no gradient, but the
    trainer gets a batch.
    """
    groups = join(step, found)
    if not groups.prompt_ids:
        groups = pick(last, last.attempts_P >= 2)
    return Batch(pick(groups, np.arange(min(most, len(groups.prompt_ids)))))


def _rows(outcomes: Outcomes, counts_P: IntArray, rows_PG: IntArray) -> dict[str, Any]:
    """The fields of `Outcomes` that hold rows, for these rows in groups of these sizes."""
    tokens = None if outcomes.tokens_PG is None else outcomes.tokens_PG[rows_PG]
    return {"counts_P": counts_P, "rewards_PG": outcomes.rewards_PG[rows_PG], "tokens_PG": tokens}
