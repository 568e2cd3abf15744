"""Kept successes in TRL's batches: what is replaced, by what, and that nothing else changes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import placed
import pytest
import small
import torch
from test_trl_resume import assert_resumes
from test_trl_vllm import Client, serve

from knapsack_rl.advantages import group_advantages
from knapsack_rl.trace import read_trace
from knapsack_rl.trl import KnapsackGRPOTrainer
from trl import GRPOTrainer

KEEPING: dict[str, Any] = {"keep_successes": True, "max_steps": 8, "temperature": 2.0}


class Recording(KnapsackGRPOTrainer):
    """Keeps every batch with its plan, what was kept before it, and the weights that made it."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        before = {name: self.kept.find(name, 10**6) for name in (f"p{i}" for i in range(12))}
        batch = super()._generate_and_score_completions(inputs)
        self.__dict__.setdefault("batches", []).append((self.last_plan, before, dict(batch), self.observed))
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.__dict__.setdefault("policies", {})[self.last_plan.step] = weights
        return batch

    def _observe(self, plan: Any, rewards_PG: Any, *others: Any) -> None:
        self.last_plan, self.observed = plan, rewards_PG.numpy().copy()
        super()._observe(plan, rewards_PG, *others)


def recorded(folder: Path, **changes: Any) -> Any:
    small.model().save_pretrained(folder / "model")  # TRL loads the reference again by its name
    arguments = {"model": str(folder / "model")}
    return small.knapsack(folder, trainer_class=Recording, arguments=arguments, **changes)


def to_replace(plan: Any, before: Any, rewards: Any) -> dict[int, Any]:
    """The kept success that is due in a row of the batch, by what was kept before and what was observed."""
    due = {}
    for i, prompt_id in enumerate(plan.prompt_ids):
        rows = np.flatnonzero(plan.group_PG == i)
        if rows.size > 1 and not rewards[rows].any() and before[prompt_id] is not None:
            due[int(rows[-1])] = before[prompt_id]
    return due


def replaced_rows(trainer: Any) -> list[tuple[Any, int, Any, Any]]:
    """Batch, row, kept success and observed rewards of every replacement that is due."""
    return [
        (batch, row, kept, rewards)
        for plan, before, batch, rewards in trainer.batches
        for row, kept in to_replace(plan, before, rewards).items()
    ]


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
        expected[list(to_replace(plan, before, rewards))] = 1.0
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


def log_probs(trainer: Any, step: int, batch: Any, row: int, kept: Any) -> torch.Tensor:
    """Log-probabilities of a kept answer under the policy of a step, by its weights and the definition alone."""
    policy = small.model()
    policy.load_state_dict(trainer.policies[step])
    prompt, tokens = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()], torch.from_numpy(kept.tokens_T).long()
    with torch.no_grad():
        logits = policy(torch.cat([prompt, tokens])[None]).logits[0, len(prompt) - 1 : -1]
    return (logits / trainer.args.temperature).log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]


def test_the_ratio_is_that_of_the_policies_then_and_now(tmp_path: Path) -> None:
    """The policy changes between keeping and use, so that some kept answers are less likely by then, others more."""
    changes = KEEPING | {"num_iterations": 2, "max_steps": 40, "learning_rate": 3e-2}
    trainer = small.knapsack(tmp_path, trainer_class=Recording, train=False, **changes)
    placed.answer_by_place(trainer)
    trainer.train()
    steps = []
    for plan, before, batch, rewards in trainer.batches:
        ratios = []
        for row, kept in to_replace(plan, before, rewards).items():
            now, then = (log_probs(trainer, step, batch, row, kept) for step in (plan.step, kept.step))
            torch.testing.assert_close(batch["old_per_token_logps"][row, : len(now)], now, atol=1e-4, rtol=1e-4)
            np.testing.assert_allclose(kept.log_probs_T, then, atol=1e-4)
            ratios.append(float(torch.exp((now - then).sum())))
        if ratios:
            steps.append(ratios)
    assert any(max(ratios) > 2 and min(ratios) < 0.5 for ratios in steps), "no step has both: this proves too little"
    logged = [value for (value,) in small.logged(trainer, "knapsack/kept_ratio") if value is not None]
    assert logged == pytest.approx([np.minimum(ratios, 1.0).mean() for ratios in steps], abs=1e-3)


class Untouched(GRPOTrainer):
    """Keeps copies of the batches as TRL makes them, before ours changes them."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        batch = super()._generate_and_score_completions(inputs)
        self.__dict__.setdefault("untouched", []).append({name: value.clone() for name, value in batch.items()})
        return batch


class RecordingBoth(Recording, Untouched):
    """TRL's batches and ours."""


class Engine(Client):
    """A server whose log-probabilities differ from the trainer's, in every row and token."""

    def generate(self, prompts: list[list[int]], n: int, **_: Any) -> dict[str, Any]:
        assert n == 1
        step = self.trainer.generation_step
        answers = [placed.answer(place, prompt, step) for place, prompt in enumerate(prompts)]
        log_probs = [[[-1.5 - 0.5 * i - 0.01 * row] for i in range(len(each))] for row, each in enumerate(answers)]
        return {"prompt_ids": prompts, "completion_ids": answers, "logprobs": log_probs}


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask", None])
def test_a_kept_success_has_weight_one_under_vllm(tmp_path: Path, mode: str | None) -> None:
    """TRL's own batches under vLLM with its importance correction (None: without), the engine played by `Engine`.

    Assumed of TRL: a batch has the engine's log-probabilities as `sampling_per_token_logps`, `[B, T]`, also without the
    correction; with it the trainer's as `old_per_token_logps`, `[B, T]`, and the ratio of the two as
    `importance_sampling_ratio`, `[B, T]` in token modes and `[B, 1]` in sequence modes; and the loss reads these names.
    All of that is asserted. A kept success is no sample of this engine: its log-probabilities are the present policy's,
    its ratio is 1, and no other row changes.
    """
    trainer = small.knapsack(tmp_path, trainer_class=RecordingBoth, train=False, **KEEPING | {"max_steps": 12})
    serve(trainer)
    trainer.vllm_generation.vllm_client = Engine(trainer)
    assert {"vllm_importance_sampling_correction", "vllm_importance_sampling_mode"} <= vars(trainer).keys()
    trainer.vllm_importance_sampling_correction, trainer.vllm_importance_sampling_mode = mode is not None, mode
    trainer.train()
    sampling, old, ratio = "sampling_per_token_logps", "old_per_token_logps", "importance_sampling_ratio"
    log_prob_names = [sampling, old] if mode else [sampling]
    loss = inspect.getsource(GRPOTrainer._compute_loss)
    assert all(f'inputs.get("{name}"' in loss for name in (sampling, old)) and f'inputs["{ratio}"]' in loss
    used = widened = 0
    for (plan, before, batch, rewards), untouched in zip(trainer.batches, trainer.untouched, strict=True):
        rows, wide = untouched["completion_ids"].shape
        widths = dict.fromkeys(["completion_ids", "completion_mask", *log_prob_names], wide)
        widths |= {ratio: wide if mode.startswith("token") else 1} if mode else {}
        two = {"prompt_ids", "prompt_mask"}
        assert {
            name: value.shape[1] for name, value in untouched.items() if value.ndim == 2 and name not in two
        } == widths
        assert batch.keys() == untouched.keys()
        due = to_replace(plan, before, rewards)
        size = max([wide, *(kept.tokens_T.size for kept in due.values())])
        used, widened = used + len(due), widened + (size > wide)
        others = [row for row in range(rows) if row not in due]
        for name, width in widths.items():
            assert batch[name].shape == (rows, size if width == wide else 1)
            assert torch.equal(batch[name][others, :width], untouched[name][others])
            assert not batch[name][others, width:].any()
        for row, kept in due.items():
            length = kept.tokens_T.size
            assert batch["completion_ids"][row].tolist() == kept.tokens_T.tolist() + [0] * (size - length)
            assert batch["completion_mask"][row].tolist() == [1] * length + [0] * (size - length)
            now = log_probs(trainer, plan.step, batch, row, kept)
            for name in log_prob_names:
                torch.testing.assert_close(batch[name][row, :length], now, atol=1e-4, rtol=1e-4)
            assert (untouched[sampling][row, :2] - now[:2]).abs().min() > 1e-3  # so it had to be written
            if mode:
                assert (batch[ratio][row] == 1).all() and (untouched[ratio][row] != 1).all()
    assert used > 2 and widened


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
