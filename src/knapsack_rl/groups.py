"""Groups that come in parts: picking, thinning, joining and judging them, for strategies that draw more than once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from knapsack_rl.notation import BoolArray, FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.strategy import Batch, Draw, Request


def group_size(request: Request) -> int:
    """Rollouts per prompt under equal division, the n of stock GRPO; what does not divide is not spent.

    Raises:
        ValueError: a budget that would leave a group of one.
    """
    size = request.budget // max(request.groups, 1)
    if size < 2:
        raise ValueError(
            f"{request.budget} rollouts for {request.groups} prompts leave groups of one: give at least"
            f" {2 * request.groups}"
        )
    return size


def equal_draw(prompt_ids: Sequence[str], count: int) -> Draw:
    """``count`` rollouts of each of these prompts."""
    return Draw(tuple(prompt_ids), np.full(len(prompt_ids), count, dtype=np.int64))


def no_groups(step: int) -> Outcomes:
    """Outcomes of nothing."""
    return Outcomes(step, (), np.zeros(0, dtype=np.int64), np.zeros(0))


def pick(outcomes: Outcomes, chosen: IntArray | BoolArray) -> Outcomes:
    """Some of the groups: those at these positions, in this order, or those where a mask ``[P]`` is True."""
    groups = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen
    counts_P = outcomes.counts_P[groups]
    starts_P = np.cumsum(outcomes.counts_P) - outcomes.counts_P
    within_PG = np.arange(int(counts_P.sum())) - np.repeat(np.cumsum(counts_P) - counts_P, counts_P)
    rows_PG = np.repeat(starts_P[groups], counts_P) + within_PG
    return _with_rows(outcomes, tuple([outcomes.prompt_ids[i] for i in groups.tolist()]), counts_P, rows_PG)


def thin(outcomes: Outcomes, kept_PG: BoolArray) -> Outcomes:
    """All of the groups, with only these of their rows."""
    counts_P = np.bincount(outcomes.group_PG[kept_PG], minlength=len(outcomes.prompt_ids)).astype(np.int64)
    return _with_rows(outcomes, outcomes.prompt_ids, counts_P, np.flatnonzero(kept_PG))


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
    """The batch of a strategy that looks for mixed groups: the first ``most`` of those it found.

    If it found none, the groups of its ``last`` draw that have two answers: they carry no gradient, but a trainer gets
    the batch it waits for.
    """
    groups = join(step, found)
    if not groups.prompt_ids:
        groups = pick(last, last.attempts_P >= 2)
    return Batch(pick(groups, np.arange(min(most, len(groups.prompt_ids)))))


def mean_and_deviation(outcomes: Outcomes) -> tuple[FloatArray, FloatArray]:
    """Mean and sample standard deviation (n - 1) of each group's rewards, each ``[P]``; 0 where there are too few."""
    answered_PG, group_PG, answers_P = outcomes.answered_PG, outcomes.group_PG, outcomes.attempts_P
    rewards_PG = np.where(answered_PG, outcomes.rewards_PG, 0.0)
    mean_P = np.bincount(group_PG, rewards_PG, answers_P.size) / np.maximum(answers_P, 1)
    squares_PG = np.where(answered_PG, rewards_PG - mean_P[group_PG], 0.0) ** 2
    return mean_P, np.sqrt(np.bincount(group_PG, squares_PG, answers_P.size) / np.maximum(answers_P - 1, 1))


def _with_rows(outcomes: Outcomes, prompt_ids: tuple[str, ...], counts_P: IntArray, rows_PG: IntArray) -> Outcomes:
    tokens = None if outcomes.tokens_PG is None else outcomes.tokens_PG[rows_PG]
    rewards = outcomes.rewards_PG[rows_PG]
    return replace(outcomes, prompt_ids=prompt_ids, counts_P=counts_P, rewards_PG=rewards, tokens_PG=tokens)
