"""ms-swift's own ``swift rlhf`` plans, trains, is killed, resumes, and plans what every other adapter plans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import swift_world as world
import torch
from safetensors.torch import load_file
from swift.pipelines import rlhf_main
from swift.rewards import ORM, orms
from swift.trainers import TrainerFactory

from knapsack_rl.session import STATE_FILE
from knapsack_rl.trace import read_trace

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "same_plans.json").read_text(encoding="utf-8"))
STOCK = "swift.rlhf_trainers.GRPOTrainer"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    world.save_model(folder)
    return folder


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "out" / "logging.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "reward" in line]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / f"checkpoint-{step}" / "model.safetensors")


@pytest.mark.timeout(1800)  # three starts of ms-swift, on machines that may be busy
def test_killed_and_resumed_is_the_run_that_never_stopped(tmp_path: Path, model: Path) -> None:
    """By the real command, with the default rule, killed after a pass over the data: plans and weights, to the bit."""
    # Workers that outlive a pass draw from torch's generator once, and once more in a run that is resumed at its end.
    changes = {"max_steps": 8, "save_steps": 2, "dataloader_persistent_workers": "false"}
    environment = world.environment()
    through, killed = tmp_path / "through", tmp_path / "killed"
    data = world.rows(16)
    subprocess.run(world.command(world.arguments(through, model, data, **changes)), env=environment, check=True)
    slow = world.PLUGIN.format(seconds=1)
    process = subprocess.Popen(
        world.command(world.arguments(killed, model, data, slow, **changes)), env=environment, start_new_session=True
    )
    checkpoint = killed / "out" / "checkpoint-4"
    try:
        deadline = time.monotonic() + 900
        while not (checkpoint / "trainer_state.json").exists():
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1.5)  # within a later step
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its data loader is a process of its own
        process.wait()
    assert len(world.plans(killed)) < 8
    again = [*world.arguments(killed, model, data, **changes), "--resume_from_checkpoint", str(checkpoint)]
    subprocess.run(world.command(again), env=environment, check=True)
    assert world.plans(killed) == world.plans(through)
    assert any(len(set(counts) - {0}) > 1 for _, _, counts, *_ in world.plans(through)), "every plan was even"
    assert (through / "out" / "checkpoint-8" / STATE_FILE).exists()
    found, expected = weights(killed, 8), weights(through, 8)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_defaults_are_a_pool_and_hidden_states(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KNAPSACK_RL", raising=False)
    rlhf_main(world.arguments(tmp_path, model, world.rows(16), save_strategy="no"))
    steps = read_trace(tmp_path / "out" / "trace.jsonl").steps
    assert {len(step.plan.prompt_ids) for step in steps} == {16}, "a pool of 4 offers four times 4 prompts"
    assert all(step.log_odds_P is not None and np.isfinite(step.log_odds_P).all() for step in steps)
    assert all("knapsack/frac_prompts_mixed" in line for line in logged(tmp_path))


@pytest.mark.parametrize("name", [name for name, run in GOLDEN["runs"].items() if run["features"] is None])
def test_same_plans_and_beliefs_as_every_other_adapter(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    given, expected = GOLDEN["settings"], GOLDEN["runs"][name]
    pool, coming = expected["pool"], iter(expected["steps"])

    class OfTheFile(ORM):  # type: ignore[misc]
        def __call__(self, completions: list[str], **_: Any) -> list[float]:
            rewards = [reward for group in next(coming)["rewards"] for reward in group]
            assert len(rewards) == len(completions)
            return rewards

    monkeypatch.setitem(orms, "of_the_file", OfTheFile)
    settings = {"rule": expected["rule"], "pool": pool, "min_count": 0 if pool > 1 else given["min_count"]}
    settings |= {"max_count": given["max_count"], "half_life": given["half_life"], "features": "none"}
    monkeypatch.setenv("KNAPSACK_RL", ",".join(f"{name}={value}" for name, value in settings.items()))
    rows = [{"messages": GOLDEN["prompts"][i]} for step in expected["steps"] for i in step["prompts"]]
    batch = len(expected["steps"][0]["prompts"]) // pool * given["average"]
    rlhf_main(
        world.arguments(
            tmp_path, model, rows, reward_funcs="of_the_file", dataset_shuffle="false", save_strategy="no",
            max_steps=len(expected["steps"]), num_generations=given["average"], per_device_train_batch_size=batch,
        )
    )  # fmt: skip
    steps = read_trace(tmp_path / "out" / "trace.jsonl").steps
    assert [step.plan.counts_P.tolist() for step in steps] == [step["counts"] for step in expected["steps"]]
    for step, golden in zip(steps, expected["steps"], strict=True):
        np.testing.assert_allclose(step.plan.success_rates_P, golden["rates"], rtol=1e-6)
        np.testing.assert_allclose(step.plan.pseudo_count_P, golden["pseudo_counts"], rtol=1e-6)


@pytest.mark.parametrize("estimator", ["grpo", "rloo"])
def test_uniform_is_ms_swift_to_the_bit(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    monkeypatch.setenv("KNAPSACK_RL", "rule=uniform")
    more = {"advantage_estimator": estimator, "num_iterations": 2, "save_steps": 4, "max_steps": 4, "beta": 0.01}
    rlhf_main(world.arguments(tmp_path / "ours", model, world.rows(), **more))
    ours = TrainerFactory.TRAINER_MAPPING["grpo"]
    assert ours != STOCK
    monkeypatch.setitem(TrainerFactory.TRAINER_MAPPING, "grpo", STOCK)
    without = world.PLUGIN.format(seconds=0).replace("import knapsack_rl.swift.plugin", "")
    rlhf_main(world.arguments(tmp_path / "stock", model, world.rows(), without, **more))
    found, expected = weights(tmp_path / "ours", 4), weights(tmp_path / "stock", 4)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    same = ("loss", "reward", "reward_std", "frac_reward_zero_std")
    pairs = zip(logged(tmp_path / "ours"), logged(tmp_path / "stock"), strict=True)
    for mine, stock in pairs:
        assert [mine[name] for name in same] == pytest.approx([stock[name] for name in same], abs=1e-6)


def test_advantages_of_uneven_groups(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is (reward - mean of its group) / deviation, times the weight of the prompt, whatever the size of groups."""
    from knapsack_rl.advantages import group_advantages
    from knapsack_rl.swift.trainer import KnapsackGRPOTrainer

    seen: list[tuple[Any, ...]] = []
    compute = KnapsackGRPOTrainer._compute_advantages

    def recorded(self: Any, samples: Any, rewards: Any, batches: Any) -> Any:
        advantages, plan = compute(self, samples, rewards, batches), self._plan
        seen.append((plan.group_PG, rewards.sum(1).tolist(), advantages.tolist()))
        return advantages

    monkeypatch.setattr(KnapsackGRPOTrainer, "_compute_advantages", recorded)
    monkeypatch.setenv("KNAPSACK_RL", "rule=beta,pool=1,weighting=prompt")
    more = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "save_strategy": "no"}
    rlhf_main(world.arguments(tmp_path, model, world.rows(8), **more))
    assert any(len(set(np.bincount(group))) > 1 for group, _, _ in seen)
    for group, rewards, advantages in seen:
        expected = group_advantages(group, rewards, weighting="prompt")
        np.testing.assert_allclose(advantages, expected, atol=1e-4)
    for line, (group, rewards, _) in zip(logged(tmp_path), seen, strict=True):
        equal = [len({r for r, g in zip(rewards, group, strict=True) if g == i}) == 1 for i in set(group.tolist())]
        assert line["frac_reward_zero_std"] == pytest.approx(np.mean(equal), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ("", {"dynamic_sample": "true"}, "--dynamic_sample true does not work"),
        ("", {"truncation_strategy": "delete"}, "--truncation_strategy delete does not work"),
        ("ruel=beta", {}, "ruel is not a setting"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, settings: str, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("KNAPSACK_RL", settings)
    with pytest.raises(ValueError, match=message):
        rlhf_main(world.arguments(tmp_path, model, world.rows(), **changes))
    assert not list(tmp_path.rglob("checkpoint-*"))
