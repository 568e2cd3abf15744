"""A run that stopped and went on is the run that never stopped: the same plans and weights, to the bit."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import small
from transformers import TrainerCallback

from knapsack_rl import BeliefFileError
from knapsack_rl.session import STATE_FILE
from knapsack_rl.trace import read_trace

SAVING = {"save_strategy": "steps", "save_steps": 4, "max_steps": 10, "save_total_limit": None}


def plans(folder: Path) -> list[tuple[Any, ...]]:
    """Everything the plans of a run were and brought, exactly."""
    return [
        (
            step.plan.step,
            step.plan.prompt_ids,
            step.plan.counts_P.tolist(),
            step.plan.success_rates_P.tolist(),
            step.plan.pseudo_count_P.tolist(),
            step.plan.price,
            step.outcomes.rewards_PG.tolist(),
        )
        for step in read_trace(folder / "trace.jsonl").steps
    ]


def assert_resumes(tmp_path: Path, checkpoint: int, **changes: Any) -> None:
    """Train through; train again from a copy of a checkpoint; compare."""
    settings = SAVING | changes
    through = small.knapsack(tmp_path / "through", **settings)
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "through" / f"checkpoint-{checkpoint}", again / f"checkpoint-{checkpoint}")
    resumed = small.knapsack(again, resume=str(again / f"checkpoint-{checkpoint}"), **settings)
    went_on = plans(again)
    assert went_on, "nothing was left to do, so nothing was compared"
    assert went_on == plans(tmp_path / "through")[-len(went_on) :]
    assert resumed.state.global_step == through.state.global_step == settings["max_steps"]
    assert small.weights(resumed) == small.weights(through)


# 12 prompts, 4 a batch: an epoch is 3 steps, so step 4 lies in the second epoch and step 8 in the third.
@pytest.mark.parametrize("checkpoint", [4, 8])
@pytest.mark.parametrize("rule", ["beta", "paper", "uniform"])
def test_any_epoch(tmp_path: Path, rule: str, checkpoint: int) -> None:
    assert_resumes(tmp_path, checkpoint, rule=rule)


@pytest.mark.parametrize("checkpoint", [4, 8])
@pytest.mark.parametrize(
    "changes",
    [
        {"pool": 3},
        {"pool": 2, "rule": "calibrated"},
        {"pool": 2, "rule": "calibrated", "features": "none"},
        {"rule": "calibrated"},
    ],
    ids=str,
)
def test_any_epoch_with_a_pool_or_hidden_states(tmp_path: Path, changes: dict[str, Any], checkpoint: int) -> None:
    assert_resumes(tmp_path, checkpoint, **changes)


def test_first_epoch_and_its_end(tmp_path: Path) -> None:
    assert_resumes(tmp_path / "first", 2, save_steps=2)
    assert_resumes(tmp_path / "end", 3, save_strategy="epoch")


@pytest.mark.parametrize(
    "changes",
    [
        {"steps_per_generation": 2, "per_device_train_batch_size": 8},
        {"steps_per_generation": 2, "per_device_train_batch_size": 8, "num_iterations": 2},
        {"steps_per_generation": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
        {"generation_batch_size": 16, "gradient_accumulation_steps": 2},
    ],
    ids=str,
)
def test_any_batching(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert_resumes(tmp_path, 4, **changes)


def test_save_point_inside_a_generated_batch_is_moved_to_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    batching = {"steps_per_generation": 4, "per_device_train_batch_size": 4, "save_steps": 3}
    with caplog.at_level(logging.WARNING, logger="knapsack_rl"):
        assert_resumes(tmp_path, 4, **batching)
    assert "the checkpoint of step 3 is moved to the end of the generated batch (every 4 steps)" in caplog.text
    names = {folder.name for folder in (tmp_path / "through").glob("checkpoint-*")}
    assert names == {"checkpoint-4", "checkpoint-8", "checkpoint-10"}  # 3 and 6 moved, 10 is the end of the run


def test_end_of_run_inside_a_batch_is_saved_and_says_so_on_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    batching = {"steps_per_generation": 4, "per_device_train_batch_size": 4}
    small.knapsack(tmp_path, **SAVING | batching)
    with caplog.at_level(logging.WARNING, logger="knapsack_rl"):
        small.knapsack(tmp_path, resume=str(tmp_path / "checkpoint-10"), **SAVING | batching | {"max_steps": 12})
    assert "checkpoint-10 was saved in the middle of a generated batch" in caplog.text


def test_best_model_needs_exact_save_points(tmp_path: Path) -> None:
    saving = {
        "load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps",
        "save_steps": 3, "steps_per_generation": 4, "per_device_train_batch_size": 4, "num_generations_eval": 2,
    }  # fmt: skip
    with pytest.raises(ValueError, match="save_steps=3, but only every 4 optimizer steps"):
        small.KnapsackGRPOConfig(**small.settings(tmp_path, **saving))


def test_checkpoint_of_stock_trl_resumes_with_a_warning_and_unseen_beliefs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small.stock(tmp_path, **SAVING | {"max_steps": 4})
    with caplog.at_level(logging.WARNING, logger="knapsack_rl"):
        small.knapsack(tmp_path, resume=str(tmp_path / "checkpoint-4"), **SAVING)
    assert "checkpoint-4 holds no beliefs" in caplog.text
    steps = read_trace(tmp_path / "trace.jsonl").steps
    assert [step.plan.step for step in steps] == list(range(4, 10))
    assert not steps[0].plan.seen_P.any()
    assert steps[-1].plan.seen_P.any()


@pytest.mark.parametrize("how", ["cut", "garbage"])
def test_damaged_checkpoint_is_an_error_that_names_the_file(tmp_path: Path, how: str) -> None:
    small.knapsack(tmp_path, **SAVING | {"max_steps": 4})
    path = tmp_path / "checkpoint-4" / STATE_FILE
    path.write_bytes(path.read_bytes()[:-20] if how == "cut" else b"\x00garbage")
    with pytest.raises(BeliefFileError, match=STATE_FILE):
        small.knapsack(tmp_path, resume=str(tmp_path / "checkpoint-4"), **SAVING)


def test_beliefs_of_another_rule_are_refused(tmp_path: Path) -> None:
    small.knapsack(tmp_path, **SAVING | {"max_steps": 4})
    with pytest.raises(BeliefFileError, match="holds kind 'beta', not 'window'"):
        small.knapsack(tmp_path, resume=str(tmp_path / "checkpoint-4"), rule="paper", **SAVING)


def test_trace_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    """A run killed after step 7 resumes from 4: steps 4..6 are done again, and the trace tells one story."""

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small.knapsack(tmp_path, arguments={"callbacks": [Kill()]}, **SAVING)
    killed = read_trace(tmp_path / "trace.jsonl")
    assert (len(killed.steps), killed.ended) == (7, None)
    small.knapsack(tmp_path, resume=str(tmp_path / "checkpoint-4"), **SAVING)
    trace = read_trace(tmp_path / "trace.jsonl")
    assert [step.plan.step for step in trace.steps] == list(range(10))
    assert trace.ended == "finished"


@pytest.mark.parametrize("changes", [{}, {"rule": "calibrated", "pool": None, "group_weighting": None}], ids=str)
def test_interrupted_in_a_generated_batch_and_resumed_by_the_same_trainer(tmp_path: Path, changes: Any) -> None:
    """As in a notebook. Every checkpoint comes, and the run is the one that never stopped."""

    class Stop(TrainerCallback):
        stopped = False

        def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5 and not self.stopped:
                self.stopped = True
                raise KeyboardInterrupt

    settings = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4,
        "save_strategy": "steps", "save_steps": 2, "max_steps": 8, **changes,
    }  # fmt: skip
    through = small.knapsack(tmp_path / "through", **settings)
    again = tmp_path / "again"
    trainer = small.knapsack(again, train=False, arguments={"callbacks": [small.Losses(), Stop()]}, **settings)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not trainer.between_batches
    trainer.train(resume_from_checkpoint=True)
    assert {each.name for each in again.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (2, 4, 6, 8)}
    assert small.weights(trainer) == small.weights(through)
    assert plans(again) == plans(tmp_path / "through")
    assert small.logged(trainer, "reward", "loss")[-4:] == small.logged(through, "reward", "loss")[-4:]


def test_a_trainer_that_trains_again_goes_on_with_what_it_has_learned(tmp_path: Path) -> None:
    trainer = small.knapsack(tmp_path, max_steps=3)
    trainer.train()
    steps = read_trace(tmp_path / "trace.jsonl").steps
    assert [step.plan.step for step in steps] == list(range(6))
    assert steps[-1].plan.seen_P.all()
