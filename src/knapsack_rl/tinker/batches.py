"""Batches that are planned when the first of their groups starts: only then is the policy there to be looked at."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tinker_cookbook.completers import TokenCompleter
from tinker_cookbook.exceptions import AllTrajectoriesFailedError
from tinker_cookbook.rl.rollout_strategy import RolloutResult, RolloutStrategy
from tinker_cookbook.rl.types import EnvGroupBuilder

from knapsack_rl.notation import FloatArray
from knapsack_rl.tinker.builders import AllocatedGroupBuilder
from knapsack_rl.tinker.looks import NextToken

LEFT_OUT = "the plan of this batch has no prompt for this group"


class Batch(NamedTuple):
    """The candidates of a step, and the groups that its plan is dealt to.

    Attributes:
        step: its number.
        prompt_ids, builders: of each candidate.
        texts: prompts by id, where they are known.
        groups: as many as there are candidates; the first ones get those that are chosen, in their order.
    """

    step: int
    prompt_ids: Sequence[str]
    texts: Mapping[str, str]
    builders: Sequence[EnvGroupBuilder]
    groups: Sequence[AllocatedGroupBuilder]


# Plans a batch with the log-probabilities of the most probable next tokens, and metrics of the look.
PlanBatch = Callable[[Batch, FloatArray, Mapping[str, float]], None]


class PlannedLater:
    """A batch that is planned by the first of its groups that starts, and after the batch before it."""

    def __init__(self, batch: Batch, look: NextToken, plan: PlanBatch, before: PlannedLater | None) -> None:
        """Wait for a group of ``batch``.

        Args:
            batch: its groups begin here.
            look: asks about its candidates.
            plan: plans it.
            before: the batch before it, which is planned first; None if there is none.
        """
        self._batch, self._look, self._plan, self._before = batch, look, plan, before
        self._planning: asyncio.Future[None] | None = None
        for group in batch.groups:
            group.begin = self.begin

    async def begin(self, client: Any) -> None:
        """Plan the batch, or wait until it is planned.

        Args:
            client: the sampling client of the group that starts.
        """
        if self._planning is None:
            self._planning = asyncio.ensure_future(self._run(client))
        await asyncio.shield(self._planning)  # a group that is cancelled must not take the plan with it

    async def _run(self, client: Any) -> None:
        if self._before is not None:
            await self._before.begin(client)
            self._before = None
        began = time.perf_counter()
        log_prob_P = await self._look.log_probs(client, self._batch.builders)
        unknown = float(np.isnan(log_prob_P).mean())
        self._plan(self._batch, log_prob_P, {"look_seconds": time.perf_counter() - began, "look_unknown": unknown})


class LookFirst(RolloutStrategy):  # type: ignore[misc]  # Any, in an environment without Tinker
    """Plans a batch when its first group starts, and then collects its rollouts as another strategy does."""

    def __init__(self, inner: RolloutStrategy) -> None:
        """Collect rollouts by ``inner``."""
        self.inner = inner
        self._failed = False
        logging.getLogger("tinker_cookbook.rl.rollouts").addFilter(_is_news)

    @property
    def catches_group_errors(self) -> bool:
        """As the other strategy; but a batch that could not be planned stops the run."""
        return bool(self.inner.catches_group_errors) and not self._failed

    async def execute(self, env_group_builder: EnvGroupBuilder, policy: TokenCompleter) -> RolloutResult:
        """Plan the group's batch if it is not planned, and collect the group's rollouts.

        Raises:
            AllTrajectoriesFailedError: the plan left the group out; the cookbook trains on the others.
            Exception: as the other strategy, and what failed in planning.
        """
        if isinstance(env_group_builder, AllocatedGroupBuilder) and env_group_builder.begin is not None:
            try:
                await env_group_builder.begin(getattr(policy, "sampling_client", None))
            except Exception:
                self._failed = True
                raise
            if env_group_builder.share is None:
                raise AllTrajectoriesFailedError(LEFT_OUT)
        return await self.inner.execute(env_group_builder, policy)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a warning of the cookbook's is about more than a group that a plan has left out."""
    return record.getMessage() != LEFT_OUT
