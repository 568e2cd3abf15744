"""The adapter reproduces the plans and beliefs that all adapters must (tests/golden/make_same_plans.py)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from datasets import Dataset

from knapsack_rl import content_id
from knapsack_rl.features.text import TextFeatures
from knapsack_rl.trace import read_trace
from knapsack_rl.trl import KnapsackGRPOTrainer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "same_plans.json").read_text(encoding="utf-8"))


class LooksOfTheFile(KnapsackGRPOTrainer):
    """Sees the file's texts where a policy's hidden states would be, and the file's log-probabilities."""

    coming: Iterator[dict[str, Any]]
    text: bool

    def _policy_features(self, prompts: list[Any]) -> torch.Tensor:
        log_probs = [math.nan if each is None else each for each in next(self.coming).get("log_probs", ())]
        states = TextFeatures()(prompts).features_P_F if self.text else np.zeros((len(prompts), 0))
        return torch.from_numpy(np.column_stack([states, log_probs or np.full(len(prompts), math.nan)]))


# Of prompts, TRL's beliefs see hidden states, and never their text alone.
@pytest.mark.parametrize(
    ("kind", "name"),
    [("runs", name) for name, run in GOLDEN["runs"].items() if run["features"] is None]
    + [("looks", name) for name in GOLDEN["looks"]],
)
def test_same_plans_and_beliefs_as_every_other_adapter(tmp_path: Path, kind: str, name: str) -> None:
    given, expected = GOLDEN["settings"], GOLDEN[kind][name]
    pool, coming = expected["pool"], iter(expected["steps"])
    looking: dict[str, Any] = {"coming": iter(expected["steps"]), "text": expected["features"] == "text"}
    trainer_class = type("Trainer", (LooksOfTheFile,), looking) if kind == "looks" else KnapsackGRPOTrainer

    def rewards_of_the_file(completions: list[Any], **_: Any) -> list[float]:
        rewards = [reward for group in next(coming)["rewards"] for reward in group]
        assert len(rewards) == len(completions)
        return rewards

    rows = [{"prompt": GOLDEN["prompts"][i]} for step in expected["steps"] for i in step["prompts"]]
    per_step = len(expected["steps"][0]["prompts"]) // pool
    trainer = small.knapsack(
        tmp_path, [rewards_of_the_file], Dataset.from_list(rows), shuffle_dataset=False, rule=expected["rule"],
        pool=pool, min_generations=given["min_count"] if pool == 1 else 0,
        max_generations=given["max_count"], half_life=given["half_life"],
        num_generations=given["average"], per_device_train_batch_size=per_step * given["average"],
        max_steps=len(expected["steps"]), features="hidden_states" if kind == "looks" else "none",
        trainer_class=trainer_class,
    )  # fmt: skip
    steps = read_trace(tmp_path / "trace.jsonl").steps
    assert [step.plan.counts_P.tolist() for step in steps] == [step["counts"] for step in expected["steps"]]
    for step, golden in zip(steps, expected["steps"], strict=True):
        np.testing.assert_allclose(step.plan.success_rates_P, golden["rates"], rtol=1e-6)
        np.testing.assert_allclose(step.plan.pseudo_count_P, golden["pseudo_counts"], rtol=1e-6)
    ids = [content_id(prompt) for prompt in GOLDEN["prompts"]]
    final = trainer.allocator.beliefs.forecast(ids, len(steps), trainer.looks(ids) if kind == "looks" else None)
    np.testing.assert_allclose(final.success_rates_P, expected["beliefs"]["rates"], rtol=1e-6)
    np.testing.assert_allclose(final.pseudo_count_P, expected["beliefs"]["pseudo_counts"], rtol=1e-6)
