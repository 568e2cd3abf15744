"""From slime's data source, which plans, to slime's rewards, which are learned: both in its RolloutManager's process.

One slot of slime (``--n-samples-per-prompt 1``) holds all rollouts of a prompt, as slime's compact rollouts do. Nothing
here imports slime: `knapsack_rl.slime.hooks` binds it to slime, `knapsack_rl.slime.miles` to its descendant miles.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from knapsack_rl.advantages import group_advantages
from knapsack_rl.beliefs.ids import ID_COLUMN, row_id
from knapsack_rl.features.prompts import PromptLooks
from knapsack_rl.metrics import best_and_worst
from knapsack_rl.notation import FloatArray
from knapsack_rl.session import Session
from knapsack_rl.slime.settings import read_settings

logger = logging.getLogger(__name__)

# Entry of a sample's metadata: step, prompt_id and count of the plan that it belongs to.
PLANNED = "knapsack"
# What slime adds to a deviation before dividing by it.
EPSILON = 1e-6
# slime's classes are not there for the type checker.
_Base: Any = object


class PlansGroups(_Base):  # type: ignore[misc]
    """Mixin for a ``RolloutDataSourceWithBuffer``: plans what it hands out, and learns from what comes back.

    Attributes:
        current: the data source of this process.
    """

    current: ClassVar[PlansGroups | None] = None

    def __init__(self, args: Namespace) -> None:
        """Check slime's arguments, and begin a run.

        Raises:
            ValueError: a setting, or an option of slime, that cannot work.
        """
        allocation, self.own = read_settings(args)
        super().__init__(args)
        self.session = Session(allocation, steps_per_pass=len(self.dataset) / args.rollout_batch_size)
        self._looks = PromptLooks(self.own["features"]) if allocation.rule == "calibrated" else None
        PlansGroups.current = self
        print(f"knapsack-rl: {self._described()}", flush=True)

    def _described(self) -> str:
        """The settings that decide most, and why some are less than by default."""
        config, said = self.session.config, ""
        if self._looks is not None:
            said = f", look={self._looks.described or 'none'}; slime asks for no look, so there are no log odds"
            if not self._looks.described and (getattr(self.args, "knapsack", None) or {}).get("features") is None:
                said += "; texts need scikit-learn: pip install 'knapsack-rl[text]'"
        return f"rule={config.rule}, pool=1, because slime leaves no prompt out, weighting={config.weighting}{said}"

    def get_samples(self, num_samples: int) -> list[list[Any]]:
        """The next prompts, each as one sample that says how many rollouts it gets."""
        groups: list[list[Any]] = super().get_samples(num_samples)
        samples, session = [group[0] for group in groups], self.session
        if session.trace is None and self.own["trace_file"] and self.args.save:
            run = {"engine": "slime", "rule": session.config.rule, "settings": vars(session.config)}
            session.open_trace(Path(self.args.save) / self.own["trace_file"], run)
        ids, prompts = [_id(sample) for sample in samples], [sample.prompt for sample in samples]
        features = self._looks(prompts) if self._looks else None
        plan = session.plan(ids, features=features, texts=dict(zip(ids, prompts, strict=True)))
        for sample, prompt_id, count in zip(samples, ids, plan.counts_P.tolist(), strict=True):
            planned = {"step": plan.step, "prompt_id": prompt_id, "count": count}
            sample.metadata = {**(sample.metadata or {}), PLANNED: planned}
            sample.rollout_id = sample.index  # slime averages samples of one rollout_id as one
        return groups

    def learn(self, samples: Sequence[Any], rewards_PG: FloatArray) -> dict[str, float]:
        """Learn from all rollouts of a step; what is missing of its plan was dropped, and will not come."""
        planned = [sample.metadata[PLANNED] for sample in samples]
        shown = [
            {"id": planned[i]["prompt_id"], "completion": samples[i].response, "reward": float(rewards_PG[i])}
            for i in best_and_worst(rewards_PG)
        ]
        metrics: dict[str, float] = {}
        for step in sorted({each["step"] for each in planned}):
            rows = [i for i, each in enumerate(planned) if each["step"] == step]
            ids, tokens = [planned[i]["prompt_id"] for i in rows], [samples[i].response_length for i in rows]
            # A resumed run may train on groups that were planned before.
            metrics |= self.session.observe(step, ids, rewards_PG[rows], tokens, samples=shown, unplanned=True)
        for plan in self.session.open_plans:
            metrics |= self.session.give_up(plan.step)
        return metrics

    def save(self, rollout_id: int) -> None:
        """Save the session beside slime's own state of the data."""
        super().save(rollout_id)
        folder = Path(self.args.save) / "rollout" / f"knapsack_{rollout_id}"
        self.session.save_to(folder, trainer_step=rollout_id)

    def load(self, rollout_id: int | None = None) -> None:
        """Restore the session where slime restores the state of the data."""
        super().load(rollout_id)
        if self.args.load is None or rollout_id is None or rollout_id < 0:
            return
        folder = Path(self.args.load) / "rollout" / f"knapsack_{rollout_id}"
        self.session.load_from(folder, rollout_id + 1, rollout_id)


def _id(sample: Any) -> str:
    """The id in the metadata, or one of everything that makes the task."""
    metadata = sample.metadata or {}
    named = {ID_COLUMN: metadata[ID_COLUMN]} if ID_COLUMN in metadata else {}
    row = {"prompt": sample.prompt, "label": sample.label, "metadata": metadata, "inputs": sample.multimodal_inputs}
    return row_id(row | named, left_out=set())


def hooks_of(library: str) -> tuple[type, Callable[..., Any]]:
    """The data source and the generation of ``slime``, or of ``miles``, by plan."""
    stock = import_module(f"{library}.rollout.data_source").RolloutDataSourceWithBuffer

    async def generate(args: Namespace, sample: Any, params: dict[str, Any]) -> Any:
        """All planned rollouts of a sample, as a list; without a plan, in evaluation, the library's own one."""
        one = import_module(f"{library}.rollout.sglang_rollout").generate  # here, because it needs SGLang
        planned = (sample.metadata or {}).get(PLANNED)
        if planned is None:
            return await one(args, sample, params)
        calls = []
        for i in range(planned["count"]):
            # With --sglang-enable-deterministic-inference each rollout of a group has a seed of its own.
            seed = {"sampling_seed": params["sampling_seed"] + i} if "sampling_seed" in params else {}
            calls.append(one(args, copy.deepcopy(sample), params | seed))
        return list(await asyncio.gather(*calls))

    return type("DataSource", (PlansGroups, stock), {}), generate


def post_process(args: Namespace, samples: Sequence[Any]) -> tuple[list[float], list[float]]:
    """Learn from the rewards of a step, and turn them into advantages; both are returned, ``[PG]``.

    slime sums (advantage x tokens of a rollout) over a slot, divides by the tokens of the slot, and averages slots. A
    factor makes that the mean over rollouts of means over tokens, which slime has for slots of one rollout.

    Raises:
        RuntimeError: the data source is another one.
    """
    source = PlansGroups.current
    if source is None:
        raise RuntimeError("there is no plan to learn from: set --data-source-path to the DataSource of knapsack-rl")
    rewards_PG = np.array([np.nan if each.reward is None else each.get_reward_value(args) for each in samples], float)
    logger.info("knapsack: %s", source.learn(samples, rewards_PG))
    slots = [sample.group_index for sample in samples]
    weighting = source.session.config.weighting or "rollout"
    advantages_PG = group_advantages(slots, rewards_PG, source.own["scale"], weighting, EPSILON)
    if not getattr(args, "calculate_per_token_loss", False):  # with it, slime averages over the tokens of a step
        _, slot_PG, counts_P = np.unique(slots, return_inverse=True, return_counts=True)
        tokens_PG = np.array([0 if each.remove_sample else each.effective_response_length for each in samples])
        advantages_PG *= np.bincount(slot_PG, tokens_PG)[slot_PG] / (counts_P.mean() * np.maximum(tokens_PG, 1))
    return np.nan_to_num(rewards_PG).tolist(), advantages_PG.tolist()
