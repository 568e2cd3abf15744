"""TRL's vLLM paths. Its own code for a vLLM server runs here; only the server behind the client is played by the model.

The colocated engine itself runs in tests/trl_vllm (`make test-vllm`, own environment). A real server runs nowhere here:
TRL sends it the weights over NCCL, which needs GPUs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small
import torch
from test_trl_uneven import COUNTS, Scored, fixed, sizes
from trl.generation.vllm_generation import VLLMGeneration


class Client:
    """Answers like TRL's server: n completions for each prompt, in order."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.asked: list[tuple[list[list[int]], int]] = []

    def generate(self, prompts: list[list[int]], n: int, max_tokens: int, **_: Any) -> dict[str, Any]:
        self.asked.append((prompts, n))
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        completions = []
        for prompt in prompts:
            with torch.no_grad():
                rows = model.generate(torch.tensor([prompt] * n), max_new_tokens=max_tokens, do_sample=True)
            completions += [row[len(prompt) :].tolist() for row in rows]
        logprobs = [[[-1.0]] * len(completion) for completion in completions]
        return {"prompt_ids": prompts, "completion_ids": completions, "logprobs": logprobs}


def serve(trainer: Any) -> Client:
    """Put TRL's server-mode generation, its `generate` untouched, behind a trainer built without vLLM."""
    engine = VLLMGeneration.__new__(VLLMGeneration)
    engine.mode, engine.accelerator = "server", trainer.accelerator
    engine.temperature, engine.top_p, engine.top_k, engine.min_p = 1.0, 1.0, 0, None
    engine.repetition_penalty, engine.max_completion_length = 1.0, 3
    engine.logprobs, engine.structured_outputs_regex, engine.generation_kwargs = 0, None, {}
    engine.enable_sleep_mode = False
    engine.sync_weights = lambda: None
    engine.vllm_client = Client(trainer)
    trainer.vllm_generation, trainer.use_vllm, trainer._last_loaded_step = engine, True, -1
    trainer.vllm_importance_sampling_correction = False
    return engine.vllm_client


@pytest.mark.parametrize("counts", [COUNTS, [4, 4, 4, 4]], ids=str)
def test_server_mode_asks_for_every_row_of_an_uneven_batch(tmp_path: Path, counts: list[int]) -> None:
    scored = Scored()
    arguments = {"allocator": fixed(*counts), "eval_dataset": small.dataset(4)}
    trainer = small.knapsack(
        tmp_path, [scored], arguments=arguments, train=False, max_steps=2, eval_strategy="steps", eval_steps=2,
        per_device_eval_batch_size=4, num_generations_eval=2,
    )  # fmt: skip
    client = serve(trainer)
    trainer.train()
    training, evaluation = client.asked[:2], client.asked[2:]
    for prompts, n in training:  # one job a row: the server sees the prompts as often as they are planned
        assert n == 1
        assert sizes([str(p) for p in prompts]) == [count for count in counts if count]
    assert [(len(prompts), n) for prompts, n in evaluation] == [(2, 2), (2, 2)]  # evaluation as TRL does it
    assert [sizes(batch) for batch in scored.batches[:2]] == [[count for count in counts if count]] * 2
