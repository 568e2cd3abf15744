"""The GRPO trainer of TRL with groups of uneven size.

TRL's sampler still offers the prompts of a generation batch, and the batch keeps its shape; only how often each prompt
stands in it changes, down to not at all. The plan is made when the batch is about to be generated, not in the sampler,
because data loaders read ahead: there the outcomes of earlier batches would not be known yet.

What is overridden, and why, stands at each method; nothing of TRL is copied.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from knapsack_rl.allocator import Allocator
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.rollouts import equal_prompt_weights, jobs
from knapsack_rl.session import Session, best_and_worst
from knapsack_rl.trace import TraceWriter
from knapsack_rl.trl.advantages import Advantages, group_advantages
from knapsack_rl.trl.callback import KnapsackCallback
from knapsack_rl.trl.config import KnapsackGRPOConfig
from knapsack_rl.trl.hidden_states import HiddenStates, hidden_states
from knapsack_rl.trl.prompts import candidates, check_dataset, check_reward_columns, distinct
from knapsack_rl.trl.sampler import EpochRepeatSampler
from trl import GRPOTrainer

logger = logging.getLogger(__name__)

Row = dict[str, Any]

# What the mixin is mixed into; at run time it has no base, so that any trainer with GRPOTrainer's methods will do.
_Base: Any = GRPOTrainer if TYPE_CHECKING else object

# Settings that tell one run from another in its trace.
_TRACED = (
    "allocation", "belief_features", "candidate_pool", "min_generations", "max_generations", "num_generations",
    "success_threshold", "group_weighting", "belief_half_life", "learning_rate", "loss_type", "scale_rewards", "beta",
    "generation_batch_size", "num_iterations", "max_steps",
)  # fmt: skip


class KnapsackMixin(_Base):  # type: ignore[misc]  # TRL ships no types
    """Uneven groups for `trl.GRPOTrainer` and trainers derived from it: ``class X(KnapsackMixin, ThatTrainer)``."""

    def __init__(self, *args: Any, allocator: Allocator | None = None, **kwargs: Any) -> None:
        """The trainer's own arguments, and optionally an allocator of your own.

        Args:
            *args: as for the trainer.
            allocator: decides and learns in place of the one that the config describes.
            **kwargs: as for the trainer; its ``args`` must be a `KnapsackGRPOConfig`.

        Raises:
            ValueError: a config of another type, or a dataset or reward function that cannot work.
        """
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, KnapsackGRPOConfig):
            raise ValueError(f"args is a {type(self.args).__name__}: pass a KnapsackGRPOConfig, it has all its fields")
        prompts = self.args.generation_batch_size // self.num_generations
        # A stream cannot bring back what a pool leaves out, and an allocator of the user's own may not leave out any.
        known = hasattr(self.train_dataset, "__len__") and allocator is None
        self.args.fit_pool(len(self.train_dataset) // prompts if known else 1)
        check_dataset(self.train_dataset, prompts, self.args.pool)
        check_reward_columns(self.reward_funcs, self.train_dataset)
        steps = len(self.train_dataset) // prompts if hasattr(self.train_dataset, "__len__") else None
        self._looks = HiddenStates() if allocator is None and self._can_look() else None
        self.session = Session(allocator or self.args.make_allocator(steps, self._looks))
        self._plan: Plan | None = None
        self._gathered: tuple[torch.Tensor, torch.Tensor] | None = None
        self._epoch_sampler: EpochRepeatSampler | None = None
        self.add_callback(KnapsackCallback(self))

    # The batch of TRL comes in with equal groups and goes on with the planned ones. All that TRL does with it stays,
    # but for the group statistics, which it takes over equal groups and which are put right afterwards.
    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)  # evaluation stays uniform
        with self.session.working():
            rows, plan, prompts = self._expand(inputs)
        self._plan = plan
        try:
            batch = super()._generate_and_score_completions(rows)
        finally:
            self._plan = None
        with self.session.working():
            rewards_per_func, tokens = self._take_gathered()
            advantages = group_advantages(
                rewards_per_func,
                self.reward_weights,
                plan.counts_P,
                self.scale_rewards,
                self.multi_objective_aggregation,
            )
            self._replace_advantages(batch, advantages, plan)
            if self.accelerator.is_main_process:
                self._learn(plan, advantages.rewards_PG, tokens, prompts)
        return batch

    # The rewards of all processes pass here, the same on each: the one place to learn outcomes from.
    def _calculate_rewards(self, inputs: list[Row], prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._plan is not None:
            lengths = torch.tensor([len(ids) for ids in completion_ids_list], device=rewards.device)
            self._gathered = rewards.detach().clone(), self.accelerator.gather(lengths)
        return rewards

    # TRL's vLLM server path sends every num_generations-th prompt and asks for num_generations completions. With uneven
    # groups every row stands for itself; the server's prefix cache still shares the prompt.
    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, *args: Any, **kwargs: Any
    ) -> Any:
        if self._plan is not None:
            num_generations = 1
        return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, *args, **kwargs)

    # A run resumed in a later epoch must meet that epoch's order, which TRL's sampler forgets; and it knows no pool.
    def _get_train_sampler(self, dataset: Any = None) -> EpochRepeatSampler:
        self._epoch_sampler = EpochRepeatSampler(super()._get_train_sampler(dataset), self.args.pool)
        return self._epoch_sampler

    # Beliefs belong to the checkpoint: without them a resumed run would plan differently.
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self.session.save(Path(self._get_output_dir(trial=trial)) / name, self.between_batches)

    # TRL restores its own extra state at the same place.
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        steps = int(self.state.global_step / self.args.generation_block_steps)
        progress = self.session.load(Path(checkpoint), step_without_beliefs=steps)
        if progress is None:
            logger.warning("%s holds no beliefs of knapsack-rl: every prompt counts as unseen", checkpoint)
        elif not progress.between_batches:
            logger.warning(
                "%s was saved in the middle of a generated batch, whose rest is lost: the run goes on, but not bit for "
                "bit as if it had never stopped",
                checkpoint,
            )

    @property
    def allocator(self) -> Allocator:
        """What decides and learns."""
        return self.session.allocator

    @property
    def trace(self) -> TraceWriter | None:
        """The record of the run: on the main process, while training."""
        return self.session.trace

    @property
    def generation_step(self) -> int:
        """Generated batches so far."""
        return self.session.step

    @property
    def between_batches(self) -> bool:
        """Whether the last generated batch is used up: the points at which a run can be resumed bit for bit."""
        return bool(self._step % (self.args.steps_per_generation * self.num_iterations) == 0)

    def open_trace(self) -> None:
        """Begin the trace, or go on with it after a resume; the main process alone writes."""
        if self.args.trace_file is not None and self.accelerator.is_main_process:
            settings = {name: getattr(self.args, name) for name in _TRACED}
            settings["generation_steps"] = round(self.state.max_steps / self.args.generation_block_steps)
            settings["model"] = getattr(self.model.config, "_name_or_path", "")
            run = {"engine": "trl", "method": self.args.allocation, "seed": self.args.seed, "settings": settings}
            self.session.open_trace(Path(self.args.output_dir) / self.args.trace_file, run)

    def set_epoch(self, epoch: int) -> None:
        """Bring the sampling order to that of an epoch."""
        if self._epoch_sampler is not None:
            self._epoch_sampler.epoch = epoch

    def _expand(self, inputs: list[Row]) -> tuple[list[Row], Plan, dict[str, Any]]:
        """This process's rows of the planned batch, the plan, and the candidates' prompts by id."""
        accelerator, pool = self.accelerator, self.args.pool
        first_row = accelerator.process_index * len(inputs)
        offered = candidates(inputs, first_row, self.num_generations, pool)
        if accelerator.num_processes > 1:
            offered = gather_object(offered)
        if pool > 1:
            offered = distinct(offered)
        prompt_ids, heads = [prompt_id for prompt_id, _ in offered], [row for _, row in offered]
        self._look(prompt_ids, heads)
        plan = self._decide(prompt_ids, len(inputs) * accelerator.num_processes)
        mine = jobs(plan.counts_P)[first_row : first_row + len(inputs)]
        # Copies, because rollout functions and environments write into their rows.
        rows = [copy.deepcopy(heads[i]) for i in mine]
        return rows, plan, {prompt_id: row.get("prompt") for prompt_id, row in offered}

    def _can_look(self) -> bool:
        """Whether the beliefs want hidden states, and prompts are plain enough to be read without generating."""
        if not self.args.wants_hidden_states:
            return False
        obstacle = None
        if self._is_vlm:
            obstacle = "prompts may hold images"
        elif getattr(self, "environment_factories", None) or self.environments:  # by TRL's version
            obstacle = "environments complete the prompts"
        if obstacle is not None:
            logger.warning(
                "belief_features='hidden_states' cannot be used, because %s: beliefs go by the prompts' record alone "
                "(belief_features='none' says so without this warning)",
                obstacle,
            )
        return obstacle is None

    def _look(self, prompt_ids: list[str], rows: list[Row]) -> None:
        """Compute the hidden states of the candidates, if the beliefs want them: every process an equal share.

        Equal, because weights that are sharded need all processes for every forward pass: shares that do not come out
        even begin again with the first candidates.
        """
        if self._looks is None:
            return
        share = -(-len(rows) // self.accelerator.num_processes)
        first = self.accelerator.process_index * share
        mine = [rows[i % len(rows)]["prompt"] for i in range(first, first + share)]
        tokens, _, _ = self._tokenize_prompts(mine)
        batch_size = self.args.per_device_train_batch_size
        found = self.accelerator.gather(hidden_states(self.model, tokens, batch_size, self.accelerator.autocast))
        self._looks.fill(prompt_ids, found[: len(rows)].double().cpu().numpy())

    def _decide(self, prompt_ids: list[str], budget: int) -> Plan:
        """The plan, made by the main process and sent to the others, so that they cannot disagree."""
        plans: list[Any] = [None]
        if self.accelerator.is_main_process:
            plans = [self.session.plan(prompt_ids, budget)]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(plans)
        plan: Plan = plans[0]
        self.session.step = plan.step + 1
        return plan

    def _take_gathered(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._gathered is None:
            raise RuntimeError("TRL did not compute rewards: its version is not one that knapsack-rl was tested with")
        gathered, self._gathered = self._gathered, None
        return gathered

    def _replace_advantages(self, batch: dict[str, Any], advantages: Advantages, plan: Plan) -> None:
        """Put the group statistics right: in the batch, in the logged metrics and in the completions table."""
        all_rows = advantages.advantages_PG
        if self.args.group_weighting == "prompt":
            weights_PG = equal_prompt_weights(plan.counts_P)[jobs(plan.counts_P)]
            all_rows = all_rows * torch.from_numpy(weights_PG).to(all_rows.device, torch.float32)
        rows = len(batch["advantages"])
        first_row = self.accelerator.process_index * rows
        batch["advantages"] = all_rows[first_row : first_row + rows]
        self._metrics["train"]["frac_reward_zero_std"][-1] = advantages.frac_reward_zero_std
        logged = self._logs["advantages"]
        for _ in range(min(len(all_rows), len(logged))):
            logged.pop()
        logged.extend(all_rows.tolist())

    def _learn(self, plan: Plan, rewards_PG: torch.Tensor, tokens_PG: torch.Tensor, prompts: dict[str, Any]) -> None:
        outcomes = Outcomes(
            step=plan.step,
            prompt_ids=plan.prompt_ids,
            counts_P=plan.counts_P,
            rewards_PG=rewards_PG.double().cpu().numpy(),
            tokens_PG=tokens_PG.cpu().numpy(),
            success_threshold=self.args.success_threshold,
        )
        samples = _samples(plan, outcomes, list(self._logs["completion"])[-plan.budget :])
        step = self.state.global_step
        metrics = self.session.learn(plan, outcomes, optimizer_step=step, texts=prompts, samples=samples)
        for name, value in metrics.items():
            self._metrics["train"][f"knapsack/{name}"].append(value)


class KnapsackGRPOTrainer(KnapsackMixin, GRPOTrainer):  # type: ignore[misc]  # TRL ships no types
    """`trl.GRPOTrainer` that divides every step's rollouts among its prompts by an exact knapsack.

    Takes the arguments of `trl.GRPOTrainer`, with a `KnapsackGRPOConfig`, and optionally ``allocator``. The dataset's
    column ``prompt_id`` names its prompts; without it a prompt is known by its content.
    """


def _samples(plan: Plan, outcomes: Outcomes, completions: list[Any]) -> list[dict[str, Any]]:
    """The best and the worst completion of the largest group: enough to see what is being learned."""
    largest = int(np.argmax(plan.counts_P))
    rows = np.flatnonzero(outcomes.group_PG == largest)
    chosen = [int(rows[i]) for i in best_and_worst(outcomes.rewards_PG[rows])]
    return [
        {"id": plan.prompt_ids[largest], "completion": completions[row], "reward": float(outcomes.rewards_PG[row])}
        for row in chosen
        if row < len(completions)
    ]
