"""ms-swift's GRPO trainer with groups of uneven size; written against ms-swift 4.6.0.

Two steps of ms-swift's rollout are overridden: the rows that are generated from, and the advantages. What it shares
with TRL's adapter (rows, sampling order, planning, checkpoints) is that adapter's. A comment at each overridden method
gives the reason; no code of ms-swift is copied.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from swift.rlhf_trainers import GRPOTrainer
from swift.utils import remove_response

from knapsack_rl.advantages import group_statistics
from knapsack_rl.beliefs.looks import Looks
from knapsack_rl.plan import Plan
from knapsack_rl.session import Session
from knapsack_rl.swift.settings import allocation_of, check_options, read_settings
from knapsack_rl.trl.callback import KnapsackCallback
from knapsack_rl.trl.checks import check_size
from knapsack_rl.trl.planning import PlansBatches
from knapsack_rl.trl.rows import NumberedRow, NumberedRows, Row, RowIds, number_of, numbered

# Settings of ms-swift that are recorded in the trace.
_TRACED = ("num_generations", "learning_rate", "loss_type", "scale_rewards", "advantage_estimator", "beta", "seed")


class KnapsackGRPOTrainer(PlansBatches, GRPOTrainer):  # type: ignore[misc]  # ms-swift is Any to the checker
    """``swift.rlhf_trainers.GRPOTrainer`` that divides every step's rollouts among its prompts by an exact knapsack."""

    train_dataset: Any
    dynamic_num_samples: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create the trainer and its session.

        Raises:
            ValueError: an option of ms-swift, a setting or a data set that cannot be used.
        """
        check_options(kwargs["args"], kwargs["template"])
        super().__init__(*args, **kwargs)
        rows = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None
        per_batch = self.args.generation_batch_size // self.num_generations
        given, self.own = read_settings()
        allocation = allocation_of(self.args, given, rows)
        self.session = Session(allocation, steps_per_pass=None if rows is None else rows // per_batch)
        check_size(self.train_dataset, per_batch, self._pool)
        self._content_ids, self._row_ids = RowIds(self.train_dataset), self._task_id
        self.looks = Looks(getattr(self.model.config, "_name_or_path", ""))
        looks = allocation.rule == "calibrated" and self.own["features"] is not None
        self._uses_hidden_states = looks and not self.is_multimodal
        if looks and self.is_multimodal and self.accelerator.is_main_process:
            self._warn_without_features("prompts may hold images")
        self._plan: Plan | None = None
        self.add_callback(KnapsackCallback(self))

    # Replaces the equal groups of the batch by the planned ones.
    def _rollout_samples(self, inputs: list[Row]) -> list[Any]:
        self._plan = None
        if self.model.training:  # evaluation stays uniform
            with self.session.working():
                rows, self._plan = self._expand([_offered(numbered(row)) for row in inputs])
            inputs = [row["row"] for row in rows]
        samples: list[Any] = super()._rollout_samples(inputs)
        return samples

    # ms-swift takes num_generations rows for a group, or, where a scheduler changes the number of samples, those of one
    # prompt_id: the latter is used, with the group in the place of the prompt.
    def _compute_advantages(self, samples: list[Any], rewards_per_func: Any, batches: list[Any]) -> torch.Tensor:
        compute, plan = super()._compute_advantages, self._plan
        if plan is None:
            return compute(samples, rewards_per_func, batches)
        if self.dynamic_num_samples or len(rewards_per_func) != plan.budget or not rewards_per_func.shape[1]:
            raise ValueError(
                f"{plan.budget} rollouts were planned and rewards of shape {tuple(rewards_per_func.shape)} came back: "
                "knapsack-rl needs a reward function, and a multi-turn scheduler that splits no trajectory"
            )
        first = self.accelerator.process_index * len(samples)
        for sample, group in zip(samples, plan.group_PG[first:].tolist(), strict=False):
            sample.prompt_id = f"group_{group}"
        self.dynamic_num_samples = self._is_uneven(plan)
        try:
            advantages_PG: torch.Tensor = compute(samples, rewards_per_func, batches)
        finally:
            self.dynamic_num_samples = False
        lengths = torch.cat([batch["grpo_batch"].completion_mask.sum(1) for batch in batches])
        self._outcomes = rewards_per_func, self.accelerator.gather(lengths)
        return self._weighted(advantages_PG, plan)

    # The last step of a rollout: its completions are texts then. Metrics that assume equal groups are replaced.
    def _log_rollout(self, samples: list[Any]) -> None:
        super()._log_rollout(samples)
        plan, self._plan = self._plan, None
        if plan is None or not self.accelerator.is_main_process:
            return
        with self.session.working():
            per_func, tokens_PG = self._outcomes
            rewards_PG = (per_func * self.reward_weights).nansum(dim=1)
            rewards_PG[per_func.isnan().all(dim=1)] = torch.nan
            self._observe(plan, rewards_PG, tokens_PG)
            if not self._is_uneven(plan):
                return
            found = group_statistics(plan.group_PG, rewards_PG.double().cpu().numpy(), plan.counts_P.size)
            deviation_P, logged = found.deviation_P[plan.counts_P > 0], self._metrics["train"]
            logged["frac_reward_zero_std"][-1] = float(np.isclose(deviation_P, 0).mean())
            if self.scale_rewards != "batch":
                logged["reward_std"][-1] = float(deviation_P.mean())

    def _is_uneven(self, plan: Plan) -> bool:
        return not set(plan.counts_P.tolist()) <= {0, self.num_generations}

    # Rows carry their number from the loader to the plan.
    def get_train_dataloader(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        rows = self.train_dataset
        self.train_dataset = NumberedRows(rows) if hasattr(rows, "__len__") else rows
        try:
            return super().get_train_dataloader(*args, **kwargs)
        finally:
            self.train_dataset = rows

    def _task_id(self, row: Row, version: int) -> str:
        """The id of a task: rows that differ in their answer, or in any other column, are two."""
        # The column `dataset` is ms-swift's own, and names the file.
        columns = {name: value for name, value in row["row"].items() if name != "dataset"}
        columns["prompt"] = columns.pop("messages")
        return self._content_ids(NumberedRow(columns, number_of(row)), version)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]]]:
        """Tokens of prompts as ms-swift generates from them, in a tuple as TRL returns them."""
        samples = self._set_inputs_system(self.to_samples([{"messages": prompt} for prompt in prompts]))
        with self.template.generate_context():
            return ([self.template.encode({"messages": sample.messages})["input_ids"] for sample in samples],)

    def begin_training(self) -> None:
        """Begin the trace or, after a checkpoint was loaded, continue it."""
        traced = vars(self.session.config) | {name: getattr(self.args, name) for name in _TRACED}
        self._open_trace("ms-swift", self.own["trace_file"], traced)


def _offered(row: Row) -> Row:
    """A row as `PlansBatches` takes it: its number, its prompt without an answer of the data, and the row itself."""
    prompt = copy.deepcopy(row["messages"])
    remove_response(prompt)
    return NumberedRow({"prompt": prompt, "row": dict(row)}, number_of(row))
