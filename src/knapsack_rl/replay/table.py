"""A table of recorded outcomes as bare numbers: a few bytes a rollout, whatever the texts beside it weigh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.ids import KeyIndex, prompt_keys
from knapsack_rl.notation import IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.replay.batches import Batch
from knapsack_rl.replay.deck import Cards, shuffle_within
from knapsack_rl.replay.recording import Visit


@dataclass(frozen=True, eq=False)
class Table:
    """Recorded rollouts, as they stand in the file: 12 to 20 bytes each.

    Attributes:
        prompt_ids: different prompts, in order of first appearance.
        prompt_R: position of each rollout's prompt, ``[R]``.
        rewards_R: its reward, ``[R]``; NaN where there was no answer.
        tokens_R: its length, where known, ``[R]``.
        step_R: the step it was made in, where known, ``[R]``.
    """

    prompt_ids: tuple[str, ...]
    prompt_R: NDArray[np.int32]
    rewards_R: NDArray[np.float32]
    tokens_R: NDArray[np.int32] | None
    step_R: NDArray[np.int32] | None

    def cards(self, seed: int, success_threshold: float) -> Cards:
        """All rollouts as cards to deal from, shuffled within each prompt by the seed."""
        order = shuffle_within(self.prompt_R, seed)
        sizes_P = np.bincount(self.prompt_R, minlength=len(self.prompt_ids)).astype(np.int64)
        tokens = None if self.tokens_R is None else self.tokens_R[order]
        return Cards(self.prompt_ids, sizes_P, self.rewards_R[order], tokens, None, success_threshold)

    def visits(self, success_threshold: float) -> Iterator[Visit]:
        """The steps that a table with a step column records, in order: groups as they first appear in each.

        Raises:
            ValueError: the table has no steps.
        """
        if self.step_R is None:
            raise ValueError("the table has no column `step`")
        order = np.argsort(self.step_R, kind="stable")
        edges = np.flatnonzero(np.diff(self.step_R[order])) + 1
        for rows in np.split(order, edges):
            yield self._visit(rows, success_threshold)

    def _visit(self, rows: IntArray, success_threshold: float) -> Visit:
        assert self.step_R is not None
        _, first, group = np.unique(self.prompt_R[rows], return_index=True, return_inverse=True)
        rank = np.empty_like(first)
        rank[np.argsort(first)] = np.arange(first.size)
        rows = rows[np.argsort(rank[group], kind="stable")]
        sizes_P = np.bincount(rank[group]).astype(np.int64)
        firsts = rows[np.cumsum(sizes_P) - sizes_P]
        outcomes = Outcomes(
            step=int(self.step_R[rows[0]]),
            prompt_ids=tuple(self.prompt_ids[i] for i in self.prompt_R[firsts].tolist()),
            counts_P=sizes_P,
            rewards_PG=self.rewards_R[rows].astype(np.float64),
            tokens_PG=None if self.tokens_R is None else self.tokens_R[rows].astype(np.int64),
            success_threshold=success_threshold,
        )
        unknown = np.full(sizes_P.size, np.nan)
        return Visit(outcomes, int(sizes_P.sum()), sizes_P, unknown, unknown)


def gather(batches: Iterable[Batch]) -> Table:
    """Boil the rows of a file down to a table.

    Raises:
        ValueError: no rollouts.
    """
    index = KeyIndex()
    ids: list[str] = []
    prompts, rewards, tokens, steps = [], [], [], []
    for batch in batches:
        rows = index.add(prompt_keys(batch.prompts))
        for row, prompt in zip(rows.tolist(), batch.prompts, strict=True):
            if row == len(ids):
                ids.append(prompt)
        prompts.append(np.repeat(rows, batch.sizes_R).astype(np.int32))
        rewards.append(batch.rewards.astype(np.float32))
        if batch.tokens is not None:
            tokens.append(batch.tokens.astype(np.int32))
        if batch.steps_R is not None:
            steps.append(np.repeat(batch.steps_R, batch.sizes_R).astype(np.int32))
    if not any(part.size for part in rewards):
        raise ValueError("the table holds no rollouts")
    return Table(
        tuple(ids),
        np.concatenate(prompts),
        np.concatenate(rewards),
        np.concatenate(tokens) if tokens else None,
        np.concatenate(steps) if steps else None,
    )
