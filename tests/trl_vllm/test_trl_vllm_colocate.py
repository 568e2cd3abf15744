"""One run with everything real: our trainer, uneven groups, and a vLLM engine that is fed the weights of every step."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from test_trl_uneven import COUNTS, Scored, fixed, sizes
from transformers import LlamaConfig, LlamaForCausalLM
from trl.generation import vllm_generation
from vllm import SamplingParams
from vllm.model_executor.layers import utils

from knapsack_rl import Outcomes
from knapsack_rl.trace import read_trace
from knapsack_rl.trl import KnapsackGRPOTrainer
from knapsack_rl.trl.advantages import group_advantages

# Marked for whoever has vLLM in the environment of the other tests.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

STEPS, TOKENS = 6, 4
UNEVEN = [count for count in COUNTS if count]
PROBES = [f"{a}{b}=" for a in "abcd" for b in "aceg"]


def unpacked(layer: torch.nn.Module, remove_weight: bool = False) -> None:
    layer.cpu_linear = torch.nn.functional.linear


def repair(patch: pytest.MonkeyPatch) -> None:
    """Two things for the sake of the CPU; nothing of this concerns an engine on a GPU.

    vLLM for CPUs packs the weight of each linear layer for oneDNN once a model is loaded, and drops the parameter that
    `load_weights` writes to: the call by which TRL sends the weights of a step. So the layers stay unpacked here.

    TRL leaves the number format to vLLM, which takes bfloat16. In the policy's own float32 the engine can be held to
    the policy token by token. And it does not compile, which would take longer than the run.
    """
    patch.setattr(utils, "dispatch_cpu_unquantized_gemm", unpacked)
    patch.setattr(vllm_generation, "LLM", functools.partial(vllm_generation.LLM, dtype="float32", enforce_eager=True))


class Trainer(KnapsackGRPOTrainer):
    """Remembers the advantages that were trained on."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        batch = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self.advantages = [*getattr(self, "advantages", []), batch["advantages"].clone()]
        return batch


def save_policy(folder: Path) -> str:
    """As in small.py, but with the smallest heads that vLLM's attention for CPUs has."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=64, pad_token_id=0, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    small.tokenizer().save_pretrained(folder)
    return str(folder)


def greedy(trainer: Any) -> tuple[list[list[int]], list[list[int]]]:
    """The likeliest tokens after some prompts: to the policy, and to the engine with the weights it has now."""
    ids = trainer.processing_class(PROBES)["input_ids"]
    policy = trainer.accelerator.unwrap_model(trainer.model)
    with torch.no_grad():
        rows = policy.generate(torch.tensor(ids), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, min_tokens=TOKENS)
    answers = trainer.vllm_generation.llm.generate([{"prompt_token_ids": p} for p in ids], sampling, use_tqdm=False)
    return rows[:, len(ids[0]) :].tolist(), [list(answer.outputs[0].token_ids) for answer in answers]


class Run:
    """One engine serves all tests of the file: a process can hold one, and it takes long to start."""

    def __init__(self, folder: Path) -> None:
        self.scored = Scored()
        self.data = small.dataset(4 * STEPS)  # every prompt once
        self.trainer = small.knapsack(
            folder, [self.scored], self.data, {"model": save_policy(folder / "policy"), "allocator": fixed(*COUNTS)},
            train=False, trainer_class=Trainer, max_steps=STEPS, learning_rate=1e-3, max_completion_length=TOKENS,
            use_vllm=True, vllm_mode="colocate", vllm_max_model_length=64, vllm_gpu_memory_utilization=0.1,
        )  # fmt: skip
        self.asked: list[tuple[list[str], int]] = []
        self.before = greedy(self.trainer)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.trainer.vllm_generation.llm, "generate", self.record(self.trainer.vllm_generation.llm))
            self.trainer.train()
        self.trace = read_trace(folder / "trace.jsonl")
        self.trainer.vllm_generation.sync_weights()  # the engine still had the weights of before the last update
        self.after = greedy(self.trainer)

    def record(self, llm: Any) -> Any:
        generate = llm.generate

        def recorded(prompts: list[Any], sampling_params: Any, **options: Any) -> Any:
            self.asked.append(([str(prompt["prompt_token_ids"]) for prompt in prompts], sampling_params.n))
            return generate(prompts, sampling_params=sampling_params, **options)

        return recorded


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        repair(patch)
        yield Run(tmp_path_factory.mktemp("run"))


def test_engine_generates_every_prompt_as_often_as_planned(run: Run) -> None:
    assert [step.plan.counts_P.tolist() for step in run.trace.steps] == [COUNTS] * STEPS
    assert [(sizes(prompts), n) for prompts, n in run.asked] == [(UNEVEN, 1)] * STEPS
    assert [sizes(batch) for batch in run.scored.batches] == [UNEVEN] * STEPS


def test_advantages_are_those_of_the_uneven_groups(run: Run) -> None:
    assert len(run.trainer.advantages) == STEPS
    for rewards, advantages in zip(run.scored.rewards, run.trainer.advantages, strict=True):
        expected = group_advantages(torch.tensor(rewards)[:, None], torch.ones(1), np.array(COUNTS), "group")
        torch.testing.assert_close(advantages, expected.advantages_PG)
    assert torch.cat(run.trainer.advantages).abs().sum() > 0


def test_beliefs_hold_the_rewards_of_the_run(run: Run) -> None:
    """They equal those of an allocator that is told by hand what the reward function returned."""
    told = fixed(*COUNTS)
    ids = {row["prompt"]: row["prompt_id"] for row in run.data}
    for step, (prompts, rewards) in enumerate(zip(run.scored.batches, run.scored.rewards, strict=True)):
        groups = list(dict.fromkeys(ids[prompt] for prompt in prompts))
        told.observe(Outcomes(step, tuple(groups), np.array(UNEVEN), np.array(rewards)))
    everyone = list(ids.values())
    learned, expected = (a.beliefs.forecast(everyone, STEPS) for a in (run.trainer.allocator, told))
    assert learned.seen_P.sum() == len(UNEVEN) * STEPS
    np.testing.assert_array_equal(learned.seen_P, expected.seen_P)
    np.testing.assert_allclose(learned.success_rates_P, expected.success_rates_P)


def test_engine_has_the_weights_of_the_policy_at_every_step(run: Run) -> None:
    """What it says its tokens' probabilities were is what the policy says, though the weights move far."""
    names = ("sampling_logp_difference/max", "importance_sampling_ratio/min", "importance_sampling_ratio/max")
    steps = small.logged(run.trainer, *(f"sampling/{name}" for name in names))
    assert len(steps) == STEPS
    for difference, low, high in steps:
        assert difference == pytest.approx(0, abs=1e-4)
        assert (low, high) == pytest.approx((1, 1), abs=1e-4)


def test_generation_follows_the_weights(run: Run) -> None:
    for policy, engine in (run.before, run.after):
        assert engine == policy
    assert run.after[0] != run.before[0]  # the run moved the policy, and the engine with it
