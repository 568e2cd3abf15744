"""Planning one generation batch inside a trainer: candidates of the batch, looks at them, plan, rows.

The mixin needs no class of TRL: what it uses of a trainer are accelerator, model, args, and the attributes that it
declares. Trainers of other libraries that offer the same rows can use it too.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from knapsack_rl.advantages import prompt_weights
from knapsack_rl.allocator import Allocator
from knapsack_rl.beliefs.looks import Looks, log_odds
from knapsack_rl.features.policy import hidden_states
from knapsack_rl.features.shared_prefix import SharedPrefix
from knapsack_rl.files import State
from knapsack_rl.metrics import best_and_worst
from knapsack_rl.notation import FloatArray, PromptFeatures
from knapsack_rl.plan import Plan
from knapsack_rl.session import Session
from knapsack_rl.trace import TraceWriter
from knapsack_rl.trl.callback import block_steps
from knapsack_rl.trl.checks import check_prompt, warn_of_large_step
from knapsack_rl.trl.rows import Candidate, Row, candidates, distinct, fresh, texts_of
from knapsack_rl.trl.sampler import EpochRepeatSampler

logger = logging.getLogger(__name__)


# The trainer's own class stands behind the mixin; it is not known here.
_Base: Any = object


class PlansBatches(_Base):  # type: ignore[misc]
    """The part of a trainer that turns the rows of a generation batch into those of a plan."""

    accelerator: Any
    args: Any
    model: Any
    num_generations: int
    environment_factories: Any = None
    session: Session
    looks: Looks
    _is_vlm: bool
    _epoch_sampler: EpochRepeatSampler | None = None
    _row_ids: Callable[[Row, int], str]
    _tokenize_prompts: Any
    _uses_hidden_states: bool

    @property
    def _pool(self) -> int:
        pool = self.session.config.pool
        assert pool is not None
        return pool

    def _expand(self, inputs: list[Row]) -> tuple[list[Row], Plan]:
        """Plan the batch, and return this process's rows of it and the plan."""
        accelerator, pool = self.accelerator, self._pool
        check_prompt(inputs[0], prompt_needed=self.environment_factories is None)
        first_row = accelerator.process_index * len(inputs)
        version = self.session.id_version
        own = candidates(inputs, first_row, self.num_generations, pool, lambda row: self._row_ids(row, version))
        offered: list[Candidate] = [candidate for candidate, _ in own]
        if accelerator.num_processes > 1:
            offered = gather_object(offered)
        kept = distinct(offered) if pool > 1 else list(range(len(offered)))
        offered = [offered[i] for i in kept]
        features = self._prompt_features(offered)
        ids = [each.prompt_id for each in offered]
        plan = self._decide(ids, len(inputs) * accelerator.num_processes, features, texts_of(offered))
        if pool == 1 and (plan.counts_P == self.num_generations).all():
            return [dict(row) for row in inputs], plan  # what stock TRL trains on, whatever the rows hold
        heads = [row for _, row in own]
        if accelerator.num_processes > 1:
            heads = gather_object(heads)
        mine = plan.group_PG[first_row : first_row + len(inputs)]
        return [fresh(heads[kept[i]]) for i in mine], plan

    @cached_property
    def _shared_prefix(self) -> SharedPrefix | None:
        """None with Unsloth, whose forward pass takes a cache for one more token only."""
        return None if "unsloth" in sys.modules else SharedPrefix()

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
            "hidden states cannot be used as features, because %s: beliefs use the prompts' own counts alone "
            "(features=none trains without this warning)",
            reason,
        )

    def _prompt_features(self, offered: list[Candidate]) -> PromptFeatures | None:
        """Look at the candidates, if the rule uses it: hidden states of their first look, and the present confidence.

        On the main process; None on the others, which do not plan.
        """
        found_P_F = self._policy_features([each.prompt for each in offered])
        if found_P_F is None or not self.accelerator.is_main_process:
            return None
        log_odds_P = log_odds(found_P_F[:, -1].double().cpu().numpy())
        return self.looks(
            [each.prompt_id for each in offered],
            log_odds_P,
            lambda rows: found_P_F[torch.from_numpy(rows).to(found_P_F.device), :-1].double().cpu().numpy(),
        )

    def _policy_features(self, prompts: list[Any]) -> torch.Tensor | None:
        """`policy_features` of prompts by the current policy, if the rule uses them; each process does a share.

        The shares have equal size, and all processes make equally many forward passes, because sharded weights need all
        of them in each: the last shares are filled up with the first candidates.
        """
        if not self._uses_hidden_states:
            return None
        accelerator = self.accelerator
        share = -(-len(prompts) // accelerator.num_processes)
        first = accelerator.process_index * share
        tokens, *_ = self._tokenize_prompts([prompts[i % len(prompts)] for i in range(first, first + share)])

        def most(passes: int) -> int:
            return int(accelerator.gather(torch.tensor([passes], device=accelerator.device)).max())

        try:
            found = hidden_states(
                self.model, tokens, device=accelerator.device, autocast=accelerator.autocast,
                passes=most if accelerator.num_processes > 1 else None, prefix=self._shared_prefix,
            )  # fmt: skip
        except (TypeError, ValueError) as error:  # the same model in every process, so all of them come here
            self._warn_without_features(f"of the model's forward pass ({error})")
            self._uses_hidden_states = False
            return None
        gathered: torch.Tensor = accelerator.gather(found)
        return gathered[: len(prompts)]

    def _decide(
        self, prompt_ids: list[str], budget: int, features: PromptFeatures | None, texts: dict[str, Any]
    ) -> Plan:
        """Make the plan on the main process, and broadcast it (without features), so that all processes share it."""
        plans: list[Any] = [None]
        if self.accelerator.is_main_process:
            plans = [self.session.plan(prompt_ids, budget, features=features, texts=texts)]
            warn_of_large_step(self.session.allocator, plans[0])
        if self.accelerator.num_processes > 1:
            plans = [plan and dataclasses.replace(plan, features=None) for plan in plans]
            broadcast_object_list(plans)
        plan: Plan = plans[0]
        self.session.step = plan.step + 1
        return plan

    def _weighted(self, advantages_PG: torch.Tensor, plan: Plan) -> torch.Tensor:
        """Advantages of a whole batch by which every prompt weighs the same, where that is set."""
        if self.session.config.weighting != "prompt":
            return advantages_PG
        weights_PG = torch.from_numpy(prompt_weights(plan.counts_P)[plan.group_PG])
        return advantages_PG * weights_PG.to(advantages_PG)

    def _observe(
        self, plan: Plan, rewards_PG: torch.Tensor, tokens_PG: torch.Tensor, kept: Mapping[str, float] | None = None
    ) -> None:
        """Learn from all rollouts of a plan, on the main process, and log the metrics."""
        rewards = rewards_PG.double().cpu().numpy()
        metrics = self.session.observe(
            plan.step,
            [plan.prompt_ids[i] for i in plan.group_PG],
            rewards,
            tokens_PG.cpu().numpy(),
            optimizer_step=self.state.global_step,
            samples=_samples(plan, rewards, list(self._logs["completion"])[-plan.budget :]),
        )
        if kept:
            self.session.record_kept(plan.step, kept)
        for name, value in {**metrics, **(kept or {})}.items():
            self._metrics["train"][f"knapsack/{name}"].append(value)

    def _open_trace(self, engine: str, file: str | None, settings: dict[str, Any]) -> None:
        """Begin the trace or, after a checkpoint was loaded, continue it; only the main process writes."""
        if file is None or not self.accelerator.is_main_process:
            return
        settings["generation_steps"] = round(self.state.max_steps / block_steps(self.args))
        settings["model"] = getattr(self.model.config, "_name_or_path", "")
        # As it was resolved, so that a replay of the trace has the same.
        settings["half_life"] = getattr(getattr(self.allocator, "beliefs", None), "half_life", None)
        run = {"engine": engine, "rule": self.session.config.rule, "seed": self.args.seed, "settings": settings}
        self.session.open_trace(Path(self.args.output_dir) / file, run)

    def _adapter_state(self) -> State:
        """What a checkpoint holds beside the session: hidden states are those of a prompt's first look."""
        return {"looks": self.looks.state_dict()} if self._uses_hidden_states else {}

    def _load_adapter(self, state: Mapping[str, Any]) -> None:
        """Restore what `_adapter_state` returned; prompts of a checkpoint without looks are looked at anew.

        Raises:
            BeliefFileError: damaged looks.
        """
        if (saved := state.get("looks")) is not None:
            self.looks.load_state_dict(saved)

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
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
            self.session.save_to(folder, trainer_step=self.state.global_step, adapter=self._adapter_state())
        super()._save_checkpoint(model, trial)

    # Restores the session's state at the point where TRL restores its own.
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        batches = self.state.global_step / block_steps(self.args)
        state = self.session.load_from(Path(checkpoint), int(batches), self.state.global_step)
        self._load_adapter((state or {}).get("adapter") or {})
        if state and not batches.is_integer():
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

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the sampling order."""
        if self._epoch_sampler is not None:
            self._epoch_sampler.epoch = epoch


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
