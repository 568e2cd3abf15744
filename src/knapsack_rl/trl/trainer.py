"""TRL's GRPO trainer with groups of uneven size.

TRL's sampler supplies the rows of a generation batch, whose shape is unchanged; only how often each row of the data set
is in it changes, possibly to 0. The plan is made just before generation, not in the sampler, because data loaders
prefetch batches before the outcomes of earlier ones are known.

A comment at each overridden method gives the reason; no code of TRL is copied.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.utils import get_config_model_id

from knapsack_rl.advantages import prompt_weights
from knapsack_rl.allocator import Allocator
from knapsack_rl.features.policy import as_prompt_features, hidden_states
from knapsack_rl.metrics import best_and_worst
from knapsack_rl.notation import FloatArray, PromptFeatures
from knapsack_rl.plan import Plan
from knapsack_rl.session import Session
from knapsack_rl.trace import TraceWriter
from knapsack_rl.trl.advantages import Advantages, grpo_advantages
from knapsack_rl.trl.callback import KnapsackCallback
from knapsack_rl.trl.checks import check_ids, check_prompt, check_reward_columns, check_size, columns_of
from knapsack_rl.trl.config import KnapsackGRPOConfig
from knapsack_rl.trl.rewards import captured_rewards, checked_rewards
from knapsack_rl.trl.rows import (
    ROW_NUMBER,
    Candidate,
    NumberedRows,
    Row,
    RowIds,
    candidates,
    distinct,
    fresh,
    texts_of,
    without_number,
)
from knapsack_rl.trl.sampler import EpochRepeatSampler
from trl import GRPOTrainer

logger = logging.getLogger(__name__)

# Base class for the type checker; none at run time, so that the mixin works with every subclass of GRPOTrainer.
_Base: Any = GRPOTrainer if TYPE_CHECKING else object

# Settings of a run that are recorded in its trace.
_TRACED = (
    "rule", "features", "pool", "min_generations", "max_generations", "num_generations", "success_threshold",
    "group_weighting", "half_life", "learning_rate", "loss_type", "scale_rewards", "beta",
    "generation_batch_size", "num_iterations", "max_steps",
)  # fmt: skip

# What TRL keeps of a run beside its checkpoints; a run that begins must not find what an interrupted one has left.
_OF_ONE_RUN = (
    "_step", "_buffered_inputs", "_current_train_step_time", "_last_world_entropy", "_entropy_window_stats",
    "_last_loaded_step",
)  # fmt: skip


class KnapsackMixin(_Base):  # type: ignore[misc]  # TRL ships no types
    """Uneven groups for `trl.GRPOTrainer` and trainers derived from it: ``class X(KnapsackMixin, ThatTrainer)``."""

    num_generations: int

    def __init__(self, *args: Any, allocator: Allocator | None = None, **kwargs: Any) -> None:
        """Create the trainer and its session.

        Args:
            *args: as for the trainer.
            allocator: replaces the allocator that the config describes.
            **kwargs: as for the trainer; its ``args`` must be a `KnapsackGRPOConfig`.

        Raises:
            ValueError: a config of another type, or a dataset or reward function that cannot be used.
        """
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, KnapsackGRPOConfig):
            raise ValueError(f"args is a {type(self.args).__name__}: pass a KnapsackGRPOConfig, it has all its fields")
        prompts = self.args.generation_batch_size // self.num_generations
        # A stream never offers a prompt again that a pool left out, and a custom allocator may be unable to choose.
        known = hasattr(self.train_dataset, "__len__") and allocator is None
        self.args.fit_pool(len(self.train_dataset) // prompts if known else 1)
        self._check_dataset(prompts)
        self._row_ids = RowIds(self.train_dataset, whole=not self.args.remove_unused_columns)
        steps = len(self.train_dataset) // prompts if hasattr(self.train_dataset, "__len__") else None
        self._uses_hidden_states = allocator is None and self._can_read_hidden_states()
        self.session = Session(self.args.allocation, allocator=allocator, steps_per_pass=steps)
        self._plan: Plan | None = None
        self._epoch_sampler: EpochRepeatSampler | None = None
        self._at_start = {name: getattr(self, name) for name in _OF_ONE_RUN if hasattr(self, name)}
        self.add_callback(KnapsackCallback(self))

    # Replaces the equal groups of TRL's batch by the planned ones. TRL's group statistics, which assume equal groups,
    # are corrected afterwards.
    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)  # evaluation stays uniform
        with self.session.working():
            rows, plan = self._expand(inputs)
        self._plan = plan
        try:
            with captured_rewards(self) as captured:
                batch = super()._generate_and_score_completions(rows)
        finally:
            self._plan = None
        with self.session.working():
            if not captured:
                raise RuntimeError("TRL did not compute rewards: this trainer is not one that knapsack-rl can extend")
            rewards_per_func, tokens = captured[-1]
            advantages = grpo_advantages(
                rewards_per_func,
                self.reward_weights,
                plan.counts_P,
                self.scale_rewards,
                self.multi_objective_aggregation,
            )
            self._replace_advantages(batch, advantages, plan)
            if self.accelerator.is_main_process:
                self._observe(plan, advantages.rewards_PG, tokens)
        return batch

    # Lets reward functions that return something else than numbers be named.
    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with checked_rewards(self):
            return super()._calculate_rewards(*args, **kwargs)

    # TRL's vLLM server path sends every num_generations-th prompt and requests num_generations completions. With uneven
    # groups every row is sent and gets one completion; the server's prefix cache still shares the prompt.
    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        generate = super()._generate_single_turn
        if self._plan is None:
            return generate(*args, **kwargs)
        signature = inspect.signature(generate)
        if "num_generations" in signature.parameters:
            call = signature.bind(*args, **kwargs)
            call.arguments["num_generations"] = 1
            return generate(*call.args, **call.kwargs)
        average: int = self.num_generations
        self.num_generations = 1  # TRL 1.14 reads the attribute
        try:
            return generate(*args, **kwargs)
        finally:
            self.num_generations = average

    # Rows carry their number from the loader to the plan.
    def _get_dataloader(self, dataset: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        if description == "Training" and hasattr(dataset, "__len__"):
            dataset = NumberedRows(dataset)
        return super()._get_dataloader(dataset, description, *args, **kwargs)

    # With remove_unused_columns, only these columns of a row are left.
    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if ROW_NUMBER not in self._signature_columns:
            self._signature_columns.append(ROW_NUMBER)

    # TRL's sampler does not restore the order of a later epoch after a resume, and does not support a pool.
    def _get_train_sampler(self, dataset: Any = None) -> EpochRepeatSampler:
        self._epoch_sampler = EpochRepeatSampler(super()._get_train_sampler(dataset), self._pool)
        return self._epoch_sampler

    # The session's state is part of the checkpoint: without it a resumed run would plan differently. It is written
    # first, and the trainer's own state, without which no run is resumed, last: so a kill leaves a checkpoint that is
    # complete or is refused, also where the folder holds an earlier one.
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
            self.session.save_to(folder, trainer_step=self.state.global_step)
        super()._save_checkpoint(model, trial)

    # Restores the session's state at the point where TRL restores its own.
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        batches = self.state.global_step / self.args.generation_block_steps
        if not self.session.load_from(Path(checkpoint), int(batches), self.state.global_step):
            logger.warning("%s holds no beliefs of knapsack-rl: every prompt counts as unseen", checkpoint)
        elif not batches.is_integer():
            logger.warning(
                "%s was saved in the middle of a generated batch, whose rest is lost: the run goes on, but not bit for "
                "bit as if it had never stopped",
                checkpoint,
            )

    @property
    def allocator(self) -> Allocator:
        """The session's allocator."""
        return self.session.allocator

    @property
    def trace(self) -> TraceWriter | None:
        """The trace of the run, on the main process during training; otherwise None."""
        return self.session.trace

    @property
    def generation_step(self) -> int:
        """Number of batches generated so far."""
        return self.session.step

    @property
    def between_batches(self) -> bool:
        """Whether the last generated batch is used up; a checkpoint of this state can be resumed bit for bit."""
        return bool(self._step % (self.args.steps_per_generation * self.num_iterations) == 0)

    def begin_training(self) -> None:
        """Drop what an earlier call of `train` has left, and begin the trace or continue it.

        After a resume the session's state is that of the checkpoint. Otherwise a trainer that trains again goes on with
        what it has learned.
        """
        for name, value in self._at_start.items():
            setattr(self, name, value)
        self._metrics["train"].clear()
        if self.state.global_step == 0 and self.session.step:
            self.session.restart_at(self.session.step)
        if self.trace is not None:
            self.trace.close()
        # Only the main process writes.
        if self.args.trace_file is not None and self.accelerator.is_main_process:
            settings = {name: getattr(self.args, name) for name in _TRACED}
            settings["generation_steps"] = round(self.state.max_steps / self.args.generation_block_steps)
            settings["model"] = getattr(self.model.config, "_name_or_path", "")
            # As it was resolved, so that a replay of the trace has the same.
            settings["half_life"] = getattr(getattr(self.allocator, "beliefs", None), "half_life", None)
            run = {"engine": "trl", "rule": self.args.rule, "seed": self.args.seed, "settings": settings}
            self.session.open_trace(Path(self.args.output_dir) / self.args.trace_file, run)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the sampling order."""
        if self._epoch_sampler is not None:
            self._epoch_sampler.epoch = epoch

    @property
    def _pool(self) -> int:
        pool = self.args.allocation.pool
        assert pool is not None
        return pool

    def _check_dataset(self, prompts: int) -> None:
        """Check what can be known of the data set and the reward functions without reading a row."""
        check_size(self.train_dataset, prompts, self._pool)
        columns = columns_of(self.train_dataset)
        if columns is not None:
            check_prompt(columns, prompt_needed=self.environment_factories is None)
            if self.rollout_func is None:  # which may add any field
                if self.args.remove_unused_columns:
                    columns = [name for name in columns if name in ("prompt", "image", "images")]
                check_reward_columns(self.reward_funcs, columns)
        check_ids(self.train_dataset)

    def _expand(self, inputs: list[Row]) -> tuple[list[Row], Plan]:
        """Plan the batch, and return this process's rows of it and the plan."""
        accelerator, pool = self.accelerator, self._pool
        check_prompt(without_number(inputs[0]), prompt_needed=self.environment_factories is None)
        first_row = accelerator.process_index * len(inputs)
        version = self.session.id_version
        own = candidates(inputs, first_row, self.num_generations, pool, lambda row: self._row_ids(row, version))
        offered: list[Candidate] = [candidate for candidate, _ in own]
        if accelerator.num_processes > 1:
            offered = gather_object(offered)
        kept = distinct(offered) if pool > 1 else list(range(len(offered)))
        offered = [offered[i] for i in kept]
        features = self._prompt_features([{"prompt": each.prompt} for each in offered])
        ids = [each.prompt_id for each in offered]
        plan = self._decide(ids, len(inputs) * accelerator.num_processes, features, texts_of(offered))
        if pool == 1 and (plan.counts_P == self.num_generations).all():
            return [without_number(row) for row in inputs], plan  # what stock TRL trains on, whatever the rows hold
        heads = [row for _, row in own]
        if accelerator.num_processes > 1:
            heads = gather_object(heads)
        mine = plan.group_PG[first_row : first_row + len(inputs)]
        return [fresh(heads[kept[i]]) for i in mine], plan

    def _can_read_hidden_states(self) -> bool:
        """Whether the rule uses hidden states, and prompts are complete before generation."""
        if not self.args.wants_hidden_states:
            return False
        obstacle = None
        if self._is_vlm:
            obstacle = "prompts may hold images"
        elif self.environment_factories is not None:
            obstacle = "environments complete the prompts"
        if obstacle is not None:
            self._warn_without_features(obstacle)
        return obstacle is None

    def _warn_without_features(self, reason: str) -> None:
        logger.warning(
            "features='hidden_states' cannot be used, because %s: beliefs use the prompts' own counts alone "
            "(set features='none' to train without this warning)",
            reason,
        )

    def _prompt_features(self, rows: list[Row]) -> PromptFeatures | None:
        """Compute features of the candidates with the current policy, if the rule uses them; each process does a share.

        The shares have equal size, because sharded weights need all processes in every forward pass: the last ones are
        filled up with the first candidates.
        """
        if not self._uses_hidden_states:
            return None
        share = -(-len(rows) // self.accelerator.num_processes)
        first = self.accelerator.process_index * share
        mine = [rows[i % len(rows)]["prompt"] for i in range(first, first + share)]
        tokens, _, _ = self._tokenize_prompts(mine)
        batch_size = self.args.per_device_train_batch_size
        try:
            found = hidden_states(self.model, tokens, batch_size, self.accelerator.autocast)
        except (TypeError, ValueError) as error:  # the same model in every process, so all of them come here
            self._warn_without_features(f"of the model's forward pass ({error})")
            self._uses_hidden_states = False
            return None
        found = self.accelerator.gather(found)
        return as_prompt_features(found[: len(rows)].double().cpu().numpy())

    def _decide(
        self, prompt_ids: list[str], budget: int, features: PromptFeatures | None, texts: dict[str, Any]
    ) -> Plan:
        """Make the plan on the main process, and broadcast it (without features), so that all processes share it."""
        plans: list[Any] = [None]
        if self.accelerator.is_main_process:
            plans = [self.session.plan(prompt_ids, budget, features=features, texts=texts)]
        if self.accelerator.num_processes > 1:
            plans = [plan and dataclasses.replace(plan, features=None) for plan in plans]
            broadcast_object_list(plans)
        plan: Plan = plans[0]
        self.session.step = plan.step + 1
        return plan

    def _replace_advantages(self, batch: dict[str, Any], advantages: Advantages, plan: Plan) -> None:
        """Correct what depends on groups: advantages in the batch and the completions table, and logged metrics."""
        all_rows = advantages.advantages_PG
        if self.args.group_weighting == "prompt":
            weights_PG = prompt_weights(plan.counts_P)[plan.group_PG]
            all_rows = all_rows * torch.from_numpy(weights_PG).to(all_rows.device, torch.float32)
        rows = len(batch["advantages"])
        first_row = self.accelerator.process_index * rows
        batch["advantages"] = all_rows[first_row : first_row + rows]
        self._metrics["train"]["frac_reward_zero_std"][-1] = advantages.frac_reward_zero_std
        logged = self._logs["advantages"]
        for _ in range(min(len(all_rows), len(logged))):
            logged.pop()
        logged.extend(all_rows.tolist())

    def _observe(self, plan: Plan, rewards_PG: torch.Tensor, tokens_PG: torch.Tensor) -> None:
        rewards = rewards_PG.double().cpu().numpy()
        metrics = self.session.observe(
            plan.step,
            [plan.prompt_ids[i] for i in plan.group_PG],
            rewards,
            tokens_PG.cpu().numpy(),
            optimizer_step=self.state.global_step,
            samples=_samples(plan, rewards, list(self._logs["completion"])[-plan.budget :]),
        )
        for name, value in metrics.items():
            self._metrics["train"][f"knapsack/{name}"].append(value)


class KnapsackGRPOTrainer(KnapsackMixin, GRPOTrainer):  # type: ignore[misc]  # TRL ships no types
    """`trl.GRPOTrainer` that divides every step's rollouts among its prompts by an exact knapsack.

    Takes the arguments of `trl.GRPOTrainer`, with a `KnapsackGRPOConfig`, and optionally ``allocator``. A task is a row
    of the data set; what is believed belongs to its ``prompt_id`` or, without that column, to the row's content.
    """

    def __init__(self, model: Any, reward_funcs: Any = None, args: Any = None, *others: Any, **kwargs: Any) -> None:
        """Create the trainer; without ``args``, with the defaults of `KnapsackGRPOConfig`."""
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = KnapsackGRPOConfig(f"{name.split('/')[-1]}-GRPO")
        super().__init__(model, reward_funcs, args, *others, **kwargs)


def _samples(plan: Plan, rewards_PG: FloatArray, completions: list[Any]) -> list[dict[str, Any]]:
    """The completions of highest and lowest reward of the largest group, for the trace."""
    largest = int(np.argmax(plan.counts_P))
    rows = np.flatnonzero(plan.group_PG == largest)
    chosen = [int(rows[i]) for i in best_and_worst(rewards_PG[rows])]
    return [
        {"id": plan.prompt_ids[largest], "completion": completions[row], "reward": float(rewards_PG[row])}
        for row in chosen
        if row < len(completions)
    ]
