"""verl's trainer, our hooks, and verl's own vLLM server with the weights of every step, on a CPU."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import cpu_engine
import pytest
import torch
from transformers import AutoModelForCausalLM
from world.assets import make
from world.fresh_looks import assert_looks_are_fresh
from world.launch import AVERAGE, PROMPTS_A_STEP, Training

from knapsack_rl.trace import Trace, read_trace

# Marked, so that an environment with both packages does not run it by default.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

STEPS, BUDGET = 6, PROMPTS_A_STEP * AVERAGE


class Run:
    """One run serves all tests of the file: the engine takes long to start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make(folder)
        Training(
            folder,
            settings={"pool": 1},
            overrides=[
                *cpu_engine.SETTINGS,
                "trainer.v1.sampler.custom_sampler.path=pkg://recording",
                "trainer.v1.sampler.custom_sampler.name=RecordingBuffer",
                "actor_rollout_ref.rollout.calculate_log_probs=True",
                "actor_rollout_ref.actor.checkpoint.save_contents=[model,hf_model]",
                "data.max_response_length=4",
                f"trainer.total_training_steps={STEPS}",
                "trainer.save_freq=1",
            ],
        ).run(timeout=600.0)
        self.generated: list[dict[str, Any]] = [
            json.loads(line) for line in (folder / "generated.jsonl").read_text().splitlines()
        ]

    @property
    def trace(self) -> Trace:
        return read_trace(self.folder / "checkpoints" / "trace.jsonl")

    def policy(self, updates: int) -> Any:
        """The policy after so many updates, from verl's checkpoint of them."""
        checkpoint = self.folder / "checkpoints" / f"global_step_{updates}" / "actor" / "huggingface"
        path = checkpoint if updates else self.folder / "model"
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    cpu_engine.install(folder / "packages")
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(Path(__file__).parent), str(folder / "packages"), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        return Run(folder)


@torch.no_grad()
def log_probs(policy: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Log-probability of each token of a response under a policy."""
    logits = policy(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, dim=-1)[range(len(response)), response]


def differences(policy: Any, generated: dict[str, Any]) -> torch.Tensor:
    """Absolute differences between the log-probabilities of the engine and of a policy, over all tokens of a step."""
    rows = zip(generated["prompts"], generated["responses"], generated["rollout_log_probs"], strict=True)
    return torch.cat([(log_probs(policy, prompt, out) - torch.tensor(said)).abs() for prompt, out, said in rows])


def test_engine_generates_every_prompt_as_often_as_planned(run: Run) -> None:
    assert run.trace.ended == "finished"
    assert len(run.generated) == len(run.trace.steps) == STEPS
    for step, generated in zip(run.trace.steps, run.generated, strict=True):
        sizes = Counter(key.split("_")[0] for key in generated["keys"])  # in the order of the plan
        assert list(sizes.values()) == step.plan.counts_P.tolist() == step.outcomes.counts_P.tolist()
        assert len(generated["keys"]) == step.plan.budget == BUDGET
        assert len(set(map(tuple, generated["prompts"]))) == PROMPTS_A_STEP
    assert sum(len(set(step.plan.counts_P.tolist())) > 1 for step in run.trace.steps) >= STEPS // 2, "uniform plans"


def test_generation_follows_the_weights(run: Run) -> None:
    """Every step is generated with the weights of the update before it, and with no earlier ones."""
    for generated in run.generated:
        updates = generated["step"] - 1
        assert differences(run.policy(updates), generated).max() < 1e-4
        if updates:
            assert differences(run.policy(updates - 1), generated).mean() > 0.05, "an update without effect"


def test_looks_are_those_of_the_latest_weights(run: Run) -> None:
    """One greedy token of vLLM's, asked for each candidate of each step beside nothing else."""
    assert_looks_are_fresh(run.folder, run.trace, least=1)
