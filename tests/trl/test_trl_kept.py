"""Kept successes in TRL's batches: what is replaced, by what, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from test_trl_resume import assert_resumes

from knapsack_rl.advantages import group_advantages
from knapsack_rl.trace import read_trace
from knapsack_rl.trl import KnapsackGRPOTrainer

KEEPING: dict[str, Any] = {"keep_successes": True, "max_steps": 8, "temperature": 2.0}


class Recording(KnapsackGRPOTrainer):
    """Keeps every batch with its plan, and what was kept before it."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        before = {name: self.kept.find(name, 10**6) for name in (f"p{i}" for i in range(12))}
        batch = super()._generate_and_score_completions(inputs)
        self.__dict__.setdefault("batches", []).append((self.last_plan, before, dict(batch), self.observed))
        return batch

    def _observe(self, plan: Any, rewards_PG: Any, *others: Any) -> None:
        self.last_plan, self.observed = plan, rewards_PG.numpy().copy()
        super()._observe(plan, rewards_PG, *others)


def recorded(folder: Path, **changes: Any) -> Any:
    small.model().save_pretrained(folder / "model")  # TRL loads the reference again by its name
    arguments = {"model": str(folder / "model")}
    return small.knapsack(folder, trainer_class=Recording, arguments=arguments, **changes)


def replaced_rows(trainer: Any) -> list[tuple[Any, int, Any, Any]]:
    """Batch, row, kept success and observed rewards of every replacement that is due."""
    found = []
    for plan, before, batch, rewards in trainer.batches:
        for i, prompt_id in enumerate(plan.prompt_ids):
            rows = np.flatnonzero(plan.group_PG == i)
            if rows.size and not rewards[rows].any() and before[prompt_id] is not None:
                found.append((batch, int(rows[-1]), before[prompt_id], rewards))
    return found


@pytest.mark.parametrize("changes", [{}, {"num_iterations": 2}, {"beta": 0.1}, {"scale_rewards": "none"}])
def test_the_last_rollout_of_a_failed_group_is_the_kept_success(tmp_path: Path, changes: dict[str, Any]) -> None:
    trainer = recorded(tmp_path, **KEEPING | changes)
    due = replaced_rows(trainer)
    assert len(due) >= 2
    for batch, row, kept, _ in due:
        size = kept.tokens_T.size
        assert batch["completion_mask"][row].sum() == size
        assert batch["completion_ids"][row, :size].tolist() == kept.tokens_T.tolist()
        assert batch["advantages"][row] > 0
    scaled = changes.get("scale_rewards") != "none"
    for plan, before, batch, rewards in trainer.batches:
        expected = rewards.astype(np.float64)
        for i, prompt_id in enumerate(plan.prompt_ids):
            rows = np.flatnonzero(plan.group_PG == i)
            if rows.size and not rewards[rows].any() and before[prompt_id] is not None:
                expected[rows[-1]] = 1.0
        advantages = group_advantages(plan.group_PG, expected, scale="group" if scaled else "none")
        np.testing.assert_allclose(batch["advantages"].numpy(), advantages, atol=1e-3)
        assert batch["num_items_in_batch"] == batch["completion_mask"].sum()
    assert sum(value for (value,) in small.logged(trainer, "knapsack/kept_used") if value) == len(due)


def test_a_success_is_not_used_beyond_its_age(tmp_path: Path) -> None:
    ages = []
    for most in (None, 1):
        trainer = small.knapsack(tmp_path / str(most), kept_max_age=most, **KEEPING)
        ages.append([age for (age,) in small.logged(trainer, "knapsack/kept_age") if age is not None])
    used = sum(used for (used,) in small.logged(trainer, "knapsack/kept_used") if used)
    record = read_trace(tmp_path / "1" / "trace.jsonl")
    assert sum(kept.metrics["kept_used"] for kept in record.kept) == used > 0
    assert [kept.step for kept in record.kept] == [step.plan.step for step in record.steps]
    assert max(ages[0]) > 1
    assert max(ages[1]) == 1


def test_beliefs_learn_what_was_generated(tmp_path: Path) -> None:
    trainer = small.knapsack(tmp_path, trainer_class=Recording, **KEEPING)
    assert replaced_rows(trainer)
    with_one = [name for name in (f"p{i}" for i in range(12)) if trainer.kept.find(name, 99) is not None]
    won = dict.fromkeys(with_one, 0.0)
    for plan, _, _, rewards in trainer.batches:
        for i, name in enumerate(plan.prompt_ids):
            if name in won:
                won[name] += rewards[plan.group_PG == i].sum()
    assert all(won.values())  # nothing is kept that was not generated


def test_log_probabilities_are_those_of_the_policy_that_generates(tmp_path: Path) -> None:
    """A learning rate of 0 keeps the policy, so that the reference and every step's policy are one."""
    changes = KEEPING | {"num_iterations": 2, "beta": 0.1, "learning_rate": 0.0, "max_steps": 12}
    trainer = recorded(tmp_path, **changes)
    due = replaced_rows(trainer)
    assert due
    for batch, row, kept, _ in due:
        tokens = torch.cat([batch["prompt_ids"][row], batch["completion_ids"][row]])[None]
        mask = torch.cat([batch["prompt_mask"][row], batch["completion_mask"][row]])[None]
        wide = batch["completion_ids"].shape[1]
        with torch.no_grad():
            found = trainer._get_per_token_logps_and_entropies(trainer.model, tokens, mask, wide)[0][0]
        size = kept.tokens_T.size
        for name in ("old_per_token_logps", "ref_per_token_logps"):
            torch.testing.assert_close(batch[name][row, :size], found[:size], atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(kept.log_probs_T, found[:size].numpy(), atol=1e-4)
    ratios = [value for (value,) in small.logged(trainer, "knapsack/kept_ratio") if value is not None]
    assert ratios == pytest.approx([1.0] * len(ratios), abs=1e-3) and ratios


def test_a_longer_completion_makes_the_batch_wider(tmp_path: Path) -> None:
    trainer = small.knapsack(tmp_path, train=False, **KEEPING)
    from knapsack_rl.trl.kept import _widen

    batch = {"completion_ids": torch.zeros(2, 3, dtype=torch.long), "completion_mask": torch.ones(2, 3)}
    batch |= {"old_per_token_logps": torch.ones(2, 3), "importance_sampling_ratio": torch.ones(2, 1)}
    _widen(batch, 5, trainer)
    assert batch["completion_ids"].shape == batch["completion_mask"].shape == (2, 5)
    assert batch["completion_mask"].sum() == 6 and batch["old_per_token_logps"].shape == (2, 5)
    assert batch["importance_sampling_ratio"].shape == (2, 1)


@pytest.mark.parametrize("changes", [{}, {"num_iterations": 2, "pool": 2, "min_generations": 0}])
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert_resumes(tmp_path, 4, keep_successes=True, **changes)


def test_the_rule_knows_what_is_kept(tmp_path: Path) -> None:
    trainer = small.knapsack(tmp_path, **KEEPING)
    assert trainer.kept is not None and len(trainer.kept)
    assert trainer.allocator.kept is trainer.kept


def test_tools_are_refused(tmp_path: Path) -> None:
    def rollout(prompts: list[Any], trainer: Any) -> Any:
        raise AssertionError

    with pytest.raises(ValueError, match="keep_successes=True cannot be used with rollout_func"):
        small.knapsack(tmp_path, train=False, keep_successes=True, arguments={"rollout_func": rollout})
