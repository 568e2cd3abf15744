"""TRL's GRPO trainer with groups of uneven size.

TRL's sampler supplies the rows of a generation batch, whose shape is unchanged; only how often each row of the data set
is in it changes, possibly to 0. The plan is made just before generation, not in the sampler, because data loaders
prefetch batches before the outcomes of earlier ones are known.

A comment at each overridden method gives the reason; no code of TRL is copied.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from trl.trainer.utils import get_config_model_id

from knapsack_rl.allocator import Allocator, KnapsackAllocator
from knapsack_rl.beliefs.looks import Looks
from knapsack_rl.files import State
from knapsack_rl.kept import KeptSuccesses
from knapsack_rl.plan import Plan
from knapsack_rl.session import Session
from knapsack_rl.shaping import Rarity
from knapsack_rl.trl.advantages import Advantages, grpo_advantages
from knapsack_rl.trl.callback import KnapsackCallback
from knapsack_rl.trl.checks import (
    check_ids,
    check_prompt,
    check_reward_columns,
    check_size,
    columns_of,
    warn_of_few_prompts,
    warn_of_smaller_pool,
)
from knapsack_rl.trl.config import KnapsackGRPOConfig
from knapsack_rl.trl.kept import check_keep_successes, successes, use_kept
from knapsack_rl.trl.planning import PlansBatches
from knapsack_rl.trl.rewards import captured_rewards, checked_rewards
from knapsack_rl.trl.rows import ROW_NUMBER, NumberedRows, Row, RowIds, numbered
from knapsack_rl.trl.unsloth import check_unsloth
from trl import GRPOTrainer

logger = logging.getLogger(__name__)

# Base class for the type checker; none at run time, so that the mixin works with every subclass of GRPOTrainer.
_Base: Any = GRPOTrainer if TYPE_CHECKING else object

# Settings of a run that are recorded in its trace.
_TRACED = (
    "rule", "features", "pool", "min_generations", "max_generations", "min_group", "num_generations",
    "success_threshold", "group_weighting", "keep_successes", "half_life", "learning_rate", "loss_type",
    "scale_rewards", "beta", "generation_batch_size", "num_iterations", "max_steps",
)  # fmt: skip

# What TRL keeps of a run beside its checkpoints; a run that begins must not find what an interrupted one has left.
_OF_ONE_RUN = (
    "_step", "_buffered_inputs", "_current_train_step_time", "_last_world_entropy", "_entropy_window_stats",
    "_last_loaded_step",
)  # fmt: skip


class KnapsackMixin(PlansBatches, _Base):  # type: ignore[misc]  # TRL ships no types
    """Uneven groups for `trl.GRPOTrainer` and trainers derived from it: ``class X(KnapsackMixin, ThatTrainer)``."""

    num_generations: int

    def __init__(
        self, *args: Any, allocator: Allocator | None = None, rarity: Rarity | None = None, **kwargs: Any
    ) -> None:
        """Create the trainer and its session.

        Args:
            *args: as for the trainer.
            allocator: replaces the allocator that the config describes.
            rarity: weighs advantages by how rare a completion's cluster is in its group.
            **kwargs: as for the trainer; its ``args`` must be a `KnapsackGRPOConfig`.

        Raises:
            ValueError: a config of another type, or a dataset or reward function that cannot be used.
        """
        check_unsloth(self, kwargs.get("model", *args[:1]))
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, KnapsackGRPOConfig):
            raise ValueError(f"args is a {type(self.args).__name__}: pass a KnapsackGRPOConfig, it has all its fields")
        prompts = self.args.generation_batch_size // self.num_generations
        # A stream never offers a prompt again that a pool left out, and a custom allocator may be unable to choose.
        rows = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None
        wanted = self.args.allocation
        self.args.fit_pool(1 if rows is None or allocator is not None else rows // prompts)
        self._check_dataset(prompts)
        if self.accelerator.is_main_process and allocator is None:
            warn_of_few_prompts(self.args, prompts)
            warn_of_smaller_pool(wanted, self.args.allocation, rows, prompts)
        self._row_ids = RowIds(self.train_dataset, whole=not self.args.remove_unused_columns)
        steps = None if rows is None else rows // prompts
        self._uses_hidden_states = allocator is None and self._can_read_hidden_states()
        self.looks = Looks(getattr(self.model.config, "_name_or_path", ""))
        self.session = Session(self.args.allocation, allocator=allocator, steps_per_pass=steps)
        self._keep_successes()
        self.rarity = rarity
        self._plan: Plan | None = None
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
            advantages = self._advantages(rewards_per_func, plan)
            rewards_PG = advantages.rewards_PG
            kept: dict[str, float] = {}
            if self.kept is not None:
                succeeded = successes(self, rewards_PG)
                rewards_per_func, kept = use_kept(self, self.kept, batch, plan, rewards_per_func, succeeded)
                advantages = self._advantages(rewards_per_func, plan)
            self._replace_advantages(batch, advantages, plan)
            if self.accelerator.is_main_process:
                self._observe(plan, rewards_PG, tokens, kept)
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
        self.num_generations = 1  # TRL up to 1.14 reads the attribute
        try:
            return generate(*args, **kwargs)
        finally:
            self.num_generations = average

    # Rows carry their number from the loader to the plan.
    def _get_dataloader(self, dataset: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        if description == "Training" and hasattr(dataset, "__len__"):
            dataset = NumberedRows(dataset)
        return super()._get_dataloader(dataset, description, *args, **kwargs)

    # From here on the rows are those of the data set to everything that sees them, the number an attribute.
    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        batches, items = super().get_batch_samples(*args, **kwargs)
        rows = [[numbered(row) for row in batch] if isinstance(batch, list) else batch for batch in batches]
        return rows, items

    # With remove_unused_columns, only these columns of a row are left.
    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if ROW_NUMBER not in self._signature_columns:
            self._signature_columns.append(ROW_NUMBER)

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
        self._open_trace("trl", self.args.trace_file, {name: getattr(self.args, name) for name in _TRACED})

    def _check_dataset(self, prompts: int) -> None:
        """Check what can be known of the data set and the reward functions without reading a row."""
        check_size(self.train_dataset, prompts, self.args.pool)
        columns = columns_of(self.train_dataset)
        if columns is not None:
            check_prompt(columns, prompt_needed=self.environment_factories is None)
            if self.rollout_func is None:  # which may add any field
                if self.args.remove_unused_columns:
                    columns = [name for name in columns if name in ("prompt", "image", "images")]
                check_reward_columns(self.reward_funcs, columns)
        check_ids(self.train_dataset)

    def _keep_successes(self) -> None:
        """Create the store of kept successes, if they are asked for, and show it to the rule."""
        self.kept = KeptSuccesses(max_age=self.args.kept_max_age) if self.args.keep_successes else None
        if self.kept is not None:
            check_keep_successes(self)
            if isinstance(self.allocator, KnapsackAllocator):
                self.allocator.kept = self.kept

    # The kept successes are part of a checkpoint.
    def _adapter_state(self) -> State:
        return super()._adapter_state() | ({} if self.kept is None else {"kept": self.kept.state_dict()})

    def _load_adapter(self, state: Mapping[str, Any]) -> None:
        super()._load_adapter(state)
        if self.kept is not None and (saved := state.get("kept")) is not None:
            self.kept.load_state_dict(saved)

    def _advantages(self, rewards_per_func: torch.Tensor, plan: Plan) -> Advantages:
        return grpo_advantages(
            rewards_per_func,
            self.reward_weights,
            plan.counts_P,
            self.scale_rewards,
            self.multi_objective_aggregation,
        )

    def _replace_advantages(self, batch: dict[str, Any], advantages: Advantages, plan: Plan) -> None:
        """Correct what depends on groups: advantages in the batch and the completions table, and logged metrics."""
        all_rows = self._weighted(advantages.advantages_PG, plan)
        if self.rarity is not None:
            prompts, completions = (list(self._logs[name])[-plan.budget :] for name in ("prompt", "completion"))
            rarity_PG = self.rarity.weights(plan.group_PG, prompts, completions)
            all_rows = all_rows * torch.from_numpy(rarity_PG).to(all_rows.device, torch.float32)
        rows = len(batch["advantages"])
        first_row = self.accelerator.process_index * rows
        batch["advantages"] = all_rows[first_row : first_row + rows]
        self._metrics["train"]["frac_reward_zero_std"][-1] = advantages.frac_reward_zero_std
        logged = self._logs["advantages"]
        for _ in range(min(len(all_rows), len(logged))):
            logged.pop()
        logged.extend(all_rows.tolist())


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
