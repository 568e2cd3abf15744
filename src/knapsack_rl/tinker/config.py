"""The cookbook's configuration plus ours: its data set, allocated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import chz
from tinker_cookbook.rl import train
from tinker_cookbook.rl.rollout_limits import TerminationRewardPolicy
from tinker_cookbook.rl.types import RLDataset, RLDatasetBuilder

from knapsack_rl.allocator import Allocator, Method, make_allocator
from knapsack_rl.beliefs import FADING_PASSES
from knapsack_rl.pool import check_pool, least_rollouts
from knapsack_rl.session import Session
from knapsack_rl.text_features import TextFeatures
from knapsack_rl.tinker.builders import PromptId, PromptText
from knapsack_rl.tinker.dataset import AllocatedDataset


@chz.chz
class AllocatedDatasetBuilder(RLDatasetBuilder):  # type: ignore[misc]
    """Builds a data set around another builder's; `allocated` fills in what the cookbook's config knows.

    Attributes:
        inner: builds the data set that the prompts come from. A test set is passed on as it is.
        log_path: the cookbook's.
        allocation: ``posterior`` or ``calibrated`` (ours), ``paper`` (the authors') or ``uniform`` (stock, with beliefs
            and trace).
        features: what ``calibrated`` knows prompts by, beside their record: ``text``, the question of a `ProblemEnv` or
            what ``prompt_text`` returns; or nothing.
        pool: candidates of a step, in batches of ``inner``: with more than 1, the plan also chooses which prompts are
            trained on. The number of steps stays, so there are as many more passes over the candidates.
        min_rollouts: least rollouts of a prompt: at least 2, or 0 to let prompts be left out; by default 2, with a pool
            0.
        max_rollouts: most rollouts of a prompt.
        success_threshold: the least reward that counts as a success for the beliefs.
        epochs: passes over the data set, without a pool; beliefs help from the second one on.
        half_life: steps after which an observation counts half; four passes over the candidates by default.
        prompt_id: names the prompt of a builder that does not do so itself.
        prompt_text: the text of the prompt of a builder whose environments are not `ProblemEnv`.
        make_allocator: what decides and learns, in place of the one that the fields describe.
        termination, max_steps: as in the cookbook's config.
    """

    inner: RLDatasetBuilder
    log_path: str
    allocation: Method = "posterior"
    features: Literal["text"] | None = None
    pool: int = 1
    min_rollouts: int | None = None
    max_rollouts: int = 128
    success_threshold: float = 1.0
    epochs: int = 1
    half_life: float | None = None
    prompt_id: PromptId | None = None
    prompt_text: PromptText | None = None
    make_allocator: Callable[[], Allocator] | None = None
    termination: TerminationRewardPolicy | None = None
    max_steps: int | None = None

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        """The data set, at its beginning or where the run goes on, and the test set.

        Raises:
            ValueError: limits, a pool, features or a half-life that make no sense.
            ImportError: features of texts without the library they need.
        """
        inner, test = await self.inner()
        check_pool(self.pool, self.allocation)
        half_life = self.half_life or FADING_PASSES * max(len(inner) / self.pool, 1.0)
        features = TextFeatures() if self.features == "text" else None
        least = least_rollouts(self.min_rollouts, self.pool)
        default = make_allocator(self.allocation, least, self.max_rollouts, half_life, features)
        session = Session(self.make_allocator() if self.make_allocator is not None else default)
        names = ("allocation", "features", "pool", "max_rollouts", "success_threshold", "epochs", "max_steps")
        settings = {name: getattr(self, name) for name in names} | {"min_rollouts": least, "half_life": half_life}
        dataset = AllocatedDataset(
            inner,
            session,
            Path(self.log_path),
            {"engine": "tinker", "method": self.allocation, "seed": 0, "settings": settings},
            success_threshold=self.success_threshold,
            epochs=self.epochs,
            max_steps=self.max_steps,
            pool=self.pool,
            features=features,
            prompt_id=self.prompt_id,
            prompt_text=self.prompt_text,
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
    pool = options.get("pool", 1)
    waits = bool(config.async_config or config.stream_minibatch_config)
    if waits and (pool > 1 or least_rollouts(options.get("min_rollouts"), pool) == 0):
        raise ValueError(
            f"{'a pool' if pool > 1 else 'min_rollouts=0'} leaves prompts out of a batch, and this loop waits for "
            f"groups_per_batch groups: use {'pool=1' if pool > 1 else '2'}, or the synchronous loop"
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
