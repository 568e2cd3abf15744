"""The cookbook's configuration plus ours: its data set, allocated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import chz
from tinker_cookbook.rl import train
from tinker_cookbook.rl.rollout_limits import TerminationRewardPolicy
from tinker_cookbook.rl.types import RLDataset, RLDatasetBuilder

from knapsack_rl.allocator import Allocator, Method, make_allocator
from knapsack_rl.beliefs import FADING_PASSES
from knapsack_rl.session import Session
from knapsack_rl.tinker.builders import PromptId
from knapsack_rl.tinker.dataset import AllocatedDataset


@chz.chz
class AllocatedDatasetBuilder(RLDatasetBuilder):  # type: ignore[misc]
    """Builds a data set around another builder's; `allocated` fills in what the cookbook's config knows.

    Attributes:
        inner: builds the data set that the prompts come from. A test set is passed on as it is.
        log_path: the cookbook's.
        allocation: ``posterior`` (ours), ``paper`` (the authors') or ``uniform`` (stock, with beliefs and trace).
        min_rollouts, max_rollouts: limits on a prompt's rollouts: at least 2, or 0 to let prompts be left out.
        success_threshold: the least reward that counts as a success for the beliefs.
        epochs: passes over the data set; beliefs help from the second one on.
        half_life: steps after which an observation counts half; four passes over the data set by default.
        prompt_id: names the prompt of a builder that does not do so itself.
        make_allocator: what decides and learns, in place of the one that the fields describe.
        termination, max_steps: as in the cookbook's config.
    """

    inner: RLDatasetBuilder
    log_path: str
    allocation: Method = "posterior"
    min_rollouts: int = 2
    max_rollouts: int = 128
    success_threshold: float = 1.0
    epochs: int = 1
    half_life: float | None = None
    prompt_id: PromptId | None = None
    make_allocator: Callable[[], Allocator] | None = None
    termination: TerminationRewardPolicy | None = None
    max_steps: int | None = None

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        """The data set, at its beginning or where the run goes on, and the test set.

        Raises:
            ValueError: limits or a half-life that make no sense.
        """
        inner, test = await self.inner()
        half_life = self.half_life or float(FADING_PASSES * max(len(inner), 1))
        default = make_allocator(self.allocation, self.min_rollouts, self.max_rollouts, half_life)
        session = Session(self.make_allocator() if self.make_allocator is not None else default)
        names = ("allocation", "min_rollouts", "max_rollouts", "success_threshold", "epochs", "max_steps")
        settings = {name: getattr(self, name) for name in names} | {"half_life": half_life}
        dataset = AllocatedDataset(
            inner,
            session,
            Path(self.log_path),
            {"engine": "tinker", "method": self.allocation, "seed": 0, "settings": settings},
            success_threshold=self.success_threshold,
            epochs=self.epochs,
            max_steps=self.max_steps,
            prompt_id=self.prompt_id,
            termination=self.termination,
        )
        return dataset, test


def allocated(config: train.Config, **options: Any) -> train.Config:
    """The cookbook's config with its data set allocated; ``options`` are fields of `AllocatedDatasetBuilder`.

    From 0.6 on the cookbook repeats data sets itself. It would do so around ours, which must know a later pass from a
    new run: so the repeating is ours.

    Raises:
        ValueError: prompts that may be left out, in a loop that waits for a fixed number of groups.
    """
    if options.get("min_rollouts") == 0 and (config.async_config or config.stream_minibatch_config):
        raise ValueError(
            "min_rollouts=0 leaves prompts out of a batch, and this loop waits for groups_per_batch groups: use 2, or "
            "the synchronous loop"
        )
    changes: dict[str, Any] = {}
    if hasattr(config, "num_epochs"):
        options = {"epochs": config.num_epochs} | options
        changes = {"num_epochs": 1}
    builder = AllocatedDatasetBuilder(
        inner=config.dataset_builder,
        log_path=config.log_path,
        termination=config.effective_termination(),
        max_steps=config.max_steps,
        **options,
    )
    return chz.replace(config, dataset_builder=builder, **changes)
